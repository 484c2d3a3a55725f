"""Planning and resuming take constant memory: ``python -m tests.inference.parts.check_listing [NAMES]``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from refiner_cli.inference.parts.plan import read_plan
from refiner_cli.inference.parts.share import Share
from tests.inference.check_memory import own_peak
from tests.inference.parts.generated import plan_of

FEW = 100_000


def measure(folder: Path, names: int) -> None:
    """Plan, then resume a folder whose parts are all there: seconds of both, and MiB that planning held."""
    began = time.perf_counter()
    plan = plan_of(folder, names, 4096)
    planned, peak = time.perf_counter() - began, own_peak()
    for unit in range(plan.units):
        plan.part(unit).touch()
    from refiner_cli.inference.parts.work import run_units

    began = time.perf_counter()
    run_units(read_plan(folder), Share(), lambda _: sys.exit(1))
    print(f"{planned} {time.perf_counter() - began} {peak}", flush=True)


def main(names: int) -> None:
    peaks = []
    for count in (FEW, names):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "tests.inference.parts.check_listing", folder, str(count)]
            text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        planned, resumed, peak = map(float, text.split())
        peaks.append(peak)
        print(
            f"{count:,} names: planned {planned:.1f} s, resumed {resumed:.2f} s, peak {peak:.0f} MiB",
            flush=True,
        )
    sys.exit(peaks[1] > 1.1 * peaks[0])


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) == 2 else 10_000_000)
