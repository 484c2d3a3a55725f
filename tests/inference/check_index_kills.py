"""Kill -9 at random moments costs an index nothing.

``python -m tests.inference.check_index_kills MODEL FOLDER [KILLS]``

``refiner index`` runs once undisturbed and once killed again and again; then photos are added, changed and
deleted, and the update is killed as well. Both indexes must be equal each time.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from refiner_cli.inference.index import FILE, PARTS, Index
from tests.conftest import ROOT

PROGRAM = [sys.executable, "-m", "refiner_cli"]
ORPHAN = "00000099-0badf00d.safetensors"  # as a process leaves it that was killed within a part
PART = "3"  # images a part, so that there are many moments between two parts


def index_command(model: str | Path, photos: Path, index: Path) -> list[str]:
    options = ["-o", str(index), "--part-size", PART, "--batch", "2", "--workers", "0", "--device", "cpu"]
    return ["-q", "index", str(model), str(photos), *options]


def run_process(command: list[str]) -> None:
    subprocess.run([*PROGRAM, *command], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)


def kill_at_random(
    command: list[str], index: Path, kills: int, dice: random.Random, wait: float = 0.2
) -> int:
    """Start the command and kill it some time after it first touched the index, again and again."""
    done = 0
    for _ in range(kills):
        before = state(index)
        process = subprocess.Popen([*PROGRAM, *command], cwd=ROOT, stderr=subprocess.DEVNULL)
        while process.poll() is None and state(index) == before:
            time.sleep(0.001)
        time.sleep(dice.random() * wait)
        if process.poll() is None:
            process.kill()
            done += 1
        process.wait()
    return done


def state(index: Path) -> list[tuple[str, int]]:
    """What is in an index, cheaply."""
    files = [index / FILE, *(index / PARTS).glob("*")] if index.is_dir() else []
    return sorted((file.name, file.stat().st_mtime_ns) for file in files if file.exists())


def contents(folder: Path) -> dict[str, tuple[object, ...]]:
    """What an index says of every image, whatever part it is in."""
    index, found = Index.open(folder), dict[str, tuple[object, ...]]()
    for part in index.info.parts:
        vectors = index.vectors(part)
        for place, row in enumerate(index.rows(part)):
            assert row.path not in found, f"{row.path} is in the index twice"
            kept = [getattr(vectors, role)[place] for role in index.info.roles]
            found[row.path] = (row, *(bytes(vector.view(torch.uint8).numpy()) for vector in kept))
    return found


def change_photos(photos: Path) -> None:
    """Delete every fifth photo, change every third and add copies of some, at the front and at the back."""
    files = sorted(path for path in photos.rglob("*") if path.suffix == ".jpg")
    for number, file in enumerate(files):
        if number % 5 == 0:
            file.unlink()
        elif number % 3 == 0:
            shutil.copy(files[number - 1] if files[number - 1].exists() else files[-1], file)
            os.utime(file, (1, number))
        elif number % 7 == 0:
            shutil.copy(file, photos / f"0-new-{number}.jpg")
            shutil.copy(file, photos / f"z-new-{number}.jpg")


def compare_killed(
    model: str | Path,
    photos: Path,
    work: Path,
    kills: int,
    dice: random.Random,
    run: Callable[[list[str]], None] = run_process,
) -> tuple[int, bool]:
    """Index and update ``photos``, which is changed, with kills and without.

    Args:
        run: runs a command undisturbed.

    Returns:
        How many kills hit, and whether the indexes were equal both times, with no file left over.
    """
    whole, torn, hits, equal = work / "whole", work / "torn", 0, True
    for update in (False, True):
        if update:
            change_photos(photos)
        hits += kill_at_random(index_command(model, photos, torn), torn, kills, dice)
        (torn / PARTS / ORPHAN).write_bytes(b"half")
        for folder in (whole, torn):
            run(index_command(model, photos, folder))
        listed = {f"{part.name}.{suffix}" for part in Index.open(torn).info.parts
                  for suffix in ("parquet", "safetensors")}  # fmt: skip
        left = {file.name for file in (torn / PARTS).iterdir()} - listed
        equal = equal and contents(whole) == contents(torn) and not left
    return hits, equal


def main(model: str, photos: str, kills: int = 15) -> None:
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "photos"
        shutil.copytree(photos, own)
        hits, equal = compare_killed(model, own, Path(folder), kills, random.Random(0))
    print(f"{hits} of {2 * kills} kills hit, the indexes are the same: {equal}")
    sys.exit(not equal)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 15)
