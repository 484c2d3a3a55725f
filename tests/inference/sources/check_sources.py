"""The same photos from every kind of source give the same rows: ``... check_sources MODEL``.

With the web server and the S3 server (moto) on loopback.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from refiner_cli.__main__ import main as refiner
from refiner_cli.inference.formats import read_rows
from tests.inference.sources.packing import (
    draw_noise,
    serve_bucket,
    serve_folder,
    write_image_table,
    write_shards,
    write_tables,
    write_tar,
    write_zip,
    write_zst,
)

COUNT = 500


def predict(model: str, places: list[str], out: Path, stdin: bytes = b"") -> dict[str, Any]:
    """The predictions by the last two parts of a name."""
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
    with contextlib.suppress(SystemExit):
        refiner(["-q", "predict", model, *places, "-o", str(out), "--batch", "32", "--device", "cpu"])
    rows = list(read_rows(out))
    found = {"/".join(row["path"].split("/")[-2:]): (row["status"], row["predictions"]) for row in rows}
    assert len(found) == len(rows)
    return found


def main(model: str) -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as servers:
        root = Path(folder)
        photos, packed = root / "photos", root / "packed"
        packed.mkdir()
        files = draw_noise(photos, COUNT, 96)
        names = [file.relative_to(photos).as_posix() for file in files]
        write_zip(packed / "p.zip", photos, files)
        write_zst(packed / "p.tar.zst", write_tar(packed / "p.tar", photos, files))
        for suffix in ("gz", "xz", "bz2"):
            write_tar(packed / f"p.tar.{suffix}", photos, files, f"w:{suffix}")
        write_shards(f"{packed}/s-%04d.tar", photos, files)
        write_image_table(packed / "p.parquet", photos, files)
        web = servers.enter_context(serve_folder(root))
        bucket = servers.enter_context(serve_bucket(root, [*files, *packed.iterdir()]))
        kinds = {f"packed {one.suffixes}": [str(one)] for one in sorted(packed.glob("p.*"))}
        kinds |= {
            "shards": [f"{packed}/s-{{0000..0002}}.tar"],
            "web images": [f"{web}/photos/{name}" for name in names],
            "web tar": [f"{web}/packed/p.tar"],
            "web zip": [f"{web}/packed/p.zip"],
            "s3 folder": [f"{bucket}/photos/"],
            "s3 tar": [f"{bucket}/packed/p.tar"],
            "s3 shards": [f"{bucket}/packed/s-*.tar"],
            "s3 parquet": [f"{bucket}/packed/p.parquet"],
        }
        expected = predict(model, [str(photos)], root / "folder.jsonl")
        kinds |= {f"table {one.suffix}": [str(one)] for one in write_tables(photos, photos, files)}
        wrong = 0
        for number, (kind, places) in enumerate(kinds.items()):
            began = time.perf_counter()
            same = predict(model, places, root / f"{number}.jsonl") == expected
            wrong += not same
            print(f"{kind}: rows equal: {same} ({time.perf_counter() - began:.1f} s)", flush=True)
        listed = "\0".join(map(str, files)).encode()
        same = predict(model, ["-", "-0"], root / "list.jsonl", listed) == expected
        print(
            f"list: rows equal: {same}; {len(expected)} rows, {wrong + (not same)} kinds differ", flush=True
        )
    sys.exit(wrong + (not same) > 0)


if __name__ == "__main__":
    main(sys.argv[1])
