"""Planning and resuming take constant memory: ``python -m tests.inference.parts.check_listing [NAMES]``."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from refiner_cli.inference.parts.plan import read_plan
from refiner_cli.inference.parts.share import Share
from refiner_cli.inference.parts.work import run_units
from refiner_cli.inference.sources.places import Places
from tests.inference.parts.test_parts import MADE, NamedImages

FEW = 100_000


def measure(folder: Path, names: int) -> None:
    """Plan, then resume a folder whose parts are all there, and print seconds and peak MiB."""
    from refiner_cli.inference.parts.plan import open_plan

    began = time.perf_counter()
    plan = open_plan(folder, MADE, Places([NamedImages(names)]), ".jsonl", 4096)
    planned = time.perf_counter() - began
    for unit in range(plan.units):
        plan.part(unit).touch()
    began = time.perf_counter()
    run_units(read_plan(folder), Share(), lambda _: sys.exit(1))
    resumed = time.perf_counter() - began
    say(f"{planned} {resumed} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}")


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def main(names: int) -> None:
    peaks = []
    for count in (FEW, names):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "tests.inference.parts.check_listing", folder, str(count)]
            text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        planned, resumed, peak = map(float, text.split())
        peaks.append(peak)
        say(f"{count:,} names: planned {planned:.1f} s, resumed {resumed:.2f} s, peak {peak:.0f} MiB")
    sys.exit(peaks[1] > 1.1 * peaks[0])


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) == 2 else 10_000_000)
