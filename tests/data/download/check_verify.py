"""Verifying 30,000 small images uses all cores: ``python -m tests.data.download.check_verify [IMAGES]``.

Writes that many 64-pixel JPEGs, decodes them all with one process and with one a core, and prints
what both took and how often progress was reported.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path
from threading import Event

import numpy as np
from PIL import Image

from refiner_cli.data.integrity import find_unreadable
from refiner_cli.data.progress import Notice, Progress
from refiner_cli.machine import cores

DIFFERENT = 50


def photos(folder: Path, count: int) -> list[str]:
    """``count`` files of ``DIFFERENT`` pictures; their names, relative to ``folder``."""
    chance = np.random.default_rng(0)
    drawn = []
    for _ in range(DIFFERENT):
        buffer = io.BytesIO()
        Image.fromarray(chance.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
        drawn.append(buffer.getvalue())
    names = [f"{number:05d}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(drawn[number % DIFFERENT])
    return names


def main(count: int = 30_000) -> None:
    told: list[Progress | Notice] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        names = photos(folder, count)
        (folder / names[7]).write_bytes(b"no picture")
        seconds: dict[int, float] = {}
        for workers in (1, cores()):
            told.clear()
            began = time.perf_counter()
            bad = find_unreadable(
                folder, names, name="check", workers=workers, report=told.append, stop=Event()
            )
            seconds[workers] = time.perf_counter() - began
            print(
                f"{workers} processes: {seconds[workers]:.1f} s, {count / seconds[workers]:.0f} images/s, "
                f"{len(told)} reports, faults {[fault.path for fault in bad]}"
            )
    print(f"{cores()} processes are {seconds[1] / seconds[cores()]:.2f} times as fast as one")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
