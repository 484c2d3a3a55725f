"""A process that works through a folder of parts without a model: ``... workers DIR SECONDS LEASE``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from refiner_cli.files import atomic_file
from refiner_cli.inference.formats import ImageRow, format_of
from refiner_cli.inference.output import RowCount
from refiner_cli.inference.parts.plan import LOG, PartPlan, read_plan
from refiner_cli.inference.parts.share import Share
from refiner_cli.inference.parts.work import WorkLog, run_units
from refiner_cli.inference.scan import NO_FILTER


def write_names(plan: PartPlan, log: WorkLog, seconds: float, unit: int) -> RowCount:
    """A part with an error row for every image, slowly."""
    plan.clear_halves(unit)
    rows = [ImageRow(image.name, None, f"unit {unit}").to_json() for image in plan.images(unit, NO_FILTER)]
    with atomic_file(plan.part(unit)) as part:
        format_of(plan.part(unit)).write(part, rows, 1)
        time.sleep(seconds)
    count = RowCount(len(rows), len(rows))
    log.note(unit, count)
    return count


def work(folder: Path, seconds: float, lease_seconds: float) -> None:
    plan = read_plan(folder)
    log = WorkLog(folder / LOG)
    print("ready", flush=True)  # noqa: T201
    run_units(plan, Share(), lambda unit: write_names(plan, log, seconds, unit), lease_seconds)


if __name__ == "__main__":
    work(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
