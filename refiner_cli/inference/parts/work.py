"""Work through the units of a folder of parts: claim one, compute it, write its part, until all are done."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from refiner_cli.errors import RefinerError, UsageError
from refiner_cli.files import atomic_file
from refiner_cli.inference.columns import RowDict
from refiner_cli.inference.formats import FORMATS, format_of, read_rows
from refiner_cli.inference.output import RowCount
from refiner_cli.inference.parts.lease import LEASE_SECONDS, Leases
from refiner_cli.inference.parts.plan import LEASES, LOG, PartPlan
from refiner_cli.inference.parts.share import Share
from refiner_cli.inference.predict import predict_files
from refiner_cli.inference.recogniser import Recogniser
from refiner_cli.inference.row_files import note_photos
from refiner_cli.inference.runner import PredictListener, PredictOptions, RowCounter
from refiner_cli.inference.scan import PathFilter
from refiner_cli.inference.sources.boxes import Boxes

MERGED_SCHEMA = "refiner.merged/1"
Compute: TypeAlias = Callable[[int], RowCount]  # makes the part of a unit


def run_units(
    plan: PartPlan,
    share: Share,
    compute: Compute,
    seconds: float = LEASE_SECONDS,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Compute every unit of a share that no other process computes, and wait for those that others do.

    The units of a process that is lost meanwhile are taken over.

    Args:
        seconds: without a sign of life, after which a process counts as lost.
        done: called after every unit.
    """
    leases = Leases(plan.folder / LEASES, seconds)
    others = any((plan.folder / LEASES).iterdir())
    start = secrets.randbelow(max(1, plan.units)) if others else 0  # not all of them at the same place
    try:
        while True:
            computed = waiting = 0
            for unit in share.units(plan.units, start):
                if plan.is_done(unit):
                    continue
                if run_unit(plan, leases, unit, compute):
                    computed += 1
                    done()
                else:
                    waiting += 1
            if not waiting:
                return
            if not computed:
                time.sleep(min(1.0, seconds / 10))
    finally:
        leases.close()


def run_unit(plan: PartPlan, leases: Leases, unit: int, compute: Compute) -> bool:
    """Compute one unit unless it is done; False: another process has it."""
    with leases.claimed(f"{unit:08d}") as mine:
        if mine and not plan.is_done(unit):
            compute(unit)
        return mine


@dataclass
class PartWriter:
    """Predicts the images of a unit and writes its part, complete or not at all."""

    plan: PartPlan
    recogniser: Recogniser
    options: PredictOptions
    chosen: PathFilter
    listener: PredictListener
    log: WorkLog
    boxes: Boxes | None = None

    def __call__(self, unit: int) -> RowCount:
        """Raises RefinerError at the first unreadable image if requested."""
        plan, count = self.plan, RowCounter(self.listener, stop_at_error=self.options.stop_at_error)
        rows = predict_files(
            self.recogniser, plan.images(unit, self.chosen, self.boxes), top_k=self.options.top_k,
            batch=plan.made["batch"], workers=self.options.workers, heatmaps=self.options.heatmaps,
            log=self.listener.note,
        )  # fmt: skip
        plan.clear_halves(unit)
        with atomic_file(plan.part(unit)) as part:
            layout = format_of(plan.part(unit), inputs=bool(plan.made.get("inputs")))
            layout.write(part, (row.to_json() for row in count.passed_on(rows)), self.options.top_k)
        self.log.note(unit, count.total)
        return count.total


@dataclass
class WorkLog:
    """What this process did: a line a unit, in a file of its own."""

    folder: Path
    name: str = field(default_factory=lambda: f"{os.getpid()}-{secrets.token_hex(4)}.jsonl")

    def note(self, unit: int, count: RowCount) -> None:
        self.folder.mkdir(exist_ok=True)
        with (self.folder / self.name).open("a", encoding="ascii") as stream:
            stream.write(json.dumps({"unit": unit, "images": count.images, "errors": count.errors}) + "\n")


def count_rows(plan: PartPlan) -> RowCount:
    """The rows and errors of all parts that are there: as the processes noted them, else as they are."""
    noted: dict[int, tuple[int, int]] = {}
    for file in (plan.folder / LOG).glob("*.jsonl"):
        for line in file.read_text("ascii", "replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                noted[entry["unit"]] = (entry["images"], entry["errors"])
    images = errors = 0
    for unit in filter(plan.is_done, range(plan.units)):
        if unit not in noted:
            found = [row["status"] != "ok" for row in read_rows(plan.part(unit))]
            noted[unit] = (len(found), sum(found))
        images, errors = images + noted[unit][0], errors + noted[unit][1]
    return RowCount(images, errors)


def merge_parts(plan: PartPlan, file: Path, *, wide: bool = False) -> RowCount:
    """Write the rows of all parts, in the order of the units, into one file, and beside it where photos lie.

    Raises UsageError for an unknown format or units of an index, RefinerError if units are missing.
    """
    if plan.suffix not in FORMATS:
        raise UsageError(f"The units in {plan.folder} are those of an index, which have no rows.")
    layout, images, errors = format_of(file, wide=wide, inputs=bool(plan.made.get("inputs"))), 0, 0
    missing = plan.units - plan.count_done()
    if missing:
        raise RefinerError(
            f"{missing} of {plan.units} units in {plan.folder} are not done.",
            hint="Run the command that made them again; it computes the missing ones.",
        )

    def rows() -> Iterator[RowDict]:
        nonlocal images, errors
        for unit in range(plan.units):
            for row in read_rows(plan.part(unit)):
                images, errors = images + 1, errors + (row["status"] != "ok")
                yield row

    with atomic_file(file) as part:
        layout.write(part, rows(), int(plan.made["top_k"]))
    note_photos(file, MERGED_SCHEMA, plan.made.get("places", []))
    return RowCount(images, errors)
