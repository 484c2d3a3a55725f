"""Mutated images through ``refiner predict``: ``python -m tests.inference.check_fuzz MODEL [COUNT]``.

Never a crash, one row each.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import parse_rows
from tests.data.test_decode import mutated, samples


def main(model: str, count: int = 2000) -> None:
    dice, kinds = random.Random(11), samples()
    with tempfile.TemporaryDirectory() as folder:
        photos, out = Path(folder) / "photos", Path(folder) / "out.jsonl"
        photos.mkdir()
        for i in range(count):
            kind, content = kinds[i % len(kinds)]
            (photos / f"{i:05}.{kind}").write_bytes(mutated(content, dice))
        command = [sys.executable, "-m", "refiner_cli", "-q", "predict", model, str(photos), "-o", str(out)]
        code = subprocess.run([*command, "--workers", "1"], check=False, stderr=subprocess.DEVNULL).returncode
        rows = parse_rows(out.read_text("utf-8"))
        names = {file.name for file in photos.iterdir()}
    good = {row["path"] for row in rows} == names and len(rows) == count and code == 5
    errors = sum(row["status"] == "error" for row in rows)
    crashes = sum("died" in (row["error"] or "") for row in rows)
    print(f"{count} mutated images: {len(rows)} rows, {errors} errors, {crashes} dead decoders, exit {code}")
    sys.exit(not good)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
