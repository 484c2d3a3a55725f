"""Shards cost no memory and little time: ``... check_shards MODEL [TARS [EACH]]``.

Peak memory of ``refiner predict`` over ``TARS`` tars of ``EACH`` small photos beside a tenth of them,
and its speed beside that of a folder of the same photos.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import refiner_cli
from refiner_cli.inference.predict import predict_files
from refiner_cli.inference.scan import ImageFile
from refiner_cli.inference.sources.places import find_places
from tests.inference.check_memory import peak
from tests.inference.sources.packing import draw_noise

TIMED, ROUNDS, BATCH = 1500, 5, 32


def write_small_tars(folder: Path, contents: list[bytes], tars: int, each: int) -> None:
    for number in range(tars):
        with tarfile.open(folder / f"s-{number:04d}.tar", "w") as tar:
            for i in range(each):
                data = contents[(number + i) % len(contents)]
                info = tarfile.TarInfo(f"{i:06d}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def rate(model: refiner_cli.Recogniser, images: Iterator[ImageFile]) -> float:
    """Images per second, the first batch aside."""
    rows = predict_files(model, islice(images, TIMED), top_k=5, batch=BATCH, workers=0)
    list(islice(rows, BATCH))
    began = time.perf_counter()
    return len(list(rows)) / (time.perf_counter() - began)


def peak_of_sources(place: str) -> float:
    """MiB that a process holds at most which only decodes the images of a place."""
    script = (
        "import sys\n"
        "from refiner_cli.data.crop import Crop\n"
        "from refiner_cli.inference.decoding import decode_batches\n"
        "from refiner_cli.inference.sources.places import find_places\n"
        "images = find_places([sys.argv[1]]).images()\n"
        "for _ in decode_batches(images, 32, Crop(96, 96), 0): pass\n"
        "from tests.inference.check_memory import own_peak\n"
        "print(own_peak())"
    )
    command = [sys.executable, "-c", script, place]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def peak_of(model: str, root: Path, place: str) -> float:
    """MiB that ``refiner predict`` holds at most over a place."""
    return peak(model, Path(place), root / f"{time.time_ns()}.jsonl")


def main(model: str, tars: int = 100, each: int = 1000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = draw_noise(root / "drawn", 50, 32)
        write_small_tars(root, [file.read_bytes() for file in files], tars, each)
        (root / "photos").mkdir()
        for i in range(TIMED):
            os.link(files[i % len(files)], root / "photos" / f"{i:06d}.jpg")
        loaded = refiner_cli.load(model, device="cpu")
        best = {"folder": 0.0, "shards": 0.0}
        for _ in range(ROUNDS):
            for name, place in (("folder", f"{root}/photos"), ("shards", f"{root}/s-{{0000..0009}}.tar")):
                best[name] = max(best[name], rate(loaded, find_places([place]).images()))
        share = best["shards"] / best["folder"]
        print(f"folder {best['folder']:.1f} images/s, shards {best['shards']:.1f}: {share:.3f}", flush=True)
        places = [f"{root}/s-{{0000..{count - 1:04d}}}.tar" for count in (tars // 10, tars)]
        ratios = []
        whole = partial(peak_of, model, root)
        for name, measure in (("decoding", peak_of_sources), ("predict", whole)):
            few, many = map(measure, places)
            ratios.append(many / few)
            print(
                f"{name}: {few:.0f} MiB over {tars // 10} tars, {many:.0f} over {tars}: {many / few:.3f}",
                flush=True,
            )
    sys.exit(share < 0.9 or max(ratios) > 1.1)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:4]))
