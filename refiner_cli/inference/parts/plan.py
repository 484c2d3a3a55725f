"""A folder of parts: the work cut into units, each of which becomes one file of rows, written whole.

::

    plan.json                 what the rows are made with, and how many units there are
    listing/00000003.jsonl    the images of unit 3, unless it is a shard
    parts/00000003.jsonl      its rows: there once it is done
    leases/                   which process computes which unit now
    log/                      what each process did

A unit is a shard (an archive or a Parquet file with images), or a slice of a listing that is made once. Done
means that the part exists, so that resuming needs no list of names in memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refiner_cli.errors import InputError, UsageError
from refiner_cli.files import write_json
from refiner_cli.inference.parts.lease import LEASE_SECONDS, Leases
from refiner_cli.inference.parts.listing import read_slice, write_slices
from refiner_cli.inference.scan import ImageFile, PathFilter, row_name
from refiner_cli.inference.sources.boxes import Boxes
from refiner_cli.inference.sources.places import Places, find_source

PARTS_SCHEMA = "refiner.parts/1"
PLAN_FILE, LISTING, PARTS_FOLDER, LEASES, LOG = "plan.json", "listing", "parts", "leases", "log"
UNIT_IMAGES = 4096
PLAN_LEASE = "plan"
SET_OF_FILES = "set_of_files"  # which files were given one by one, as arguments or in a list
Made = dict[str, Any]  # with what rows are made; every value must be the same to resume


@dataclass(frozen=True)
class PartPlan:
    """The units of a folder.

    Attributes:
        made: with what the rows are made.
        shards: the places of the first units; the others are slices of the listing.
        several: whether names begin with their place.
    """

    folder: Path
    made: Made
    suffix: str
    shards: list[str]
    slices: int
    several: bool

    @property
    def units(self) -> int:
        return len(self.shards) + self.slices

    def part(self, unit: int) -> Path:
        """The file of a unit's rows."""
        return self.folder / PARTS_FOLDER / f"{unit:08d}{self.suffix}"

    def is_done(self, unit: int) -> bool:
        return self.part(unit).exists()

    def count_done(self) -> int:
        return sum(map(self.is_done, range(self.units)))

    def images(self, unit: int, chosen: PathFilter, boxes: Boxes | None = None) -> Iterator[ImageFile]:
        """The images of a unit, in their order."""
        if unit >= len(self.shards):
            return read_slice(self.folder / LISTING, unit)
        return Places([find_source(self.shards[unit], chosen)], several=self.several, boxes=boxes).images()

    def clear_halves(self, unit: int) -> None:
        """Remove what a killed process left of a part."""
        for file in (self.folder / PARTS_FOLDER).glob(f".{unit:08d}*.tmp"):
            file.unlink(missing_ok=True)


def is_parts_folder(folder: Path) -> bool:
    """Whether a folder holds parts, or the beginning of some."""
    return (folder / PLAN_FILE).is_file()


def read_plan(folder: Path) -> PartPlan:
    """Raises InputError if there is none or it is damaged."""
    file = folder / PLAN_FILE
    try:
        found = json.loads(file.read_text("utf-8"))
        if found["schema"] != PARTS_SCHEMA:
            raise ValueError(f"its schema is {found['schema']}")
        shards = [str(shard) for shard in found["shards"]]
        return PartPlan(folder, dict(found["made"]), str(found["suffix"]), shards, int(found["slices"]),
                        bool(found["several"]))  # fmt: skip
    except FileNotFoundError:
        raise InputError(
            f"{row_name(str(folder))} holds no parts: the file {PLAN_FILE} is missing."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{row_name(str(file))} is damaged ({error}).", hint="Start over with --overwrite."
        ) from None


def open_plan(
    folder: Path,
    made: Made,
    places: Places,
    suffix: str,
    unit_images: int = UNIT_IMAGES,
    seconds: float = LEASE_SECONDS,
    begin: Callable[[], None] = lambda: None,
) -> PartPlan:
    """The plan of a folder; a new one is made by the first process that comes, while others wait for it.

    Args:
        begin: called by the process that makes the plan, before that counts.

    Raises:
        UsageError: the parts in the folder are of another model, of other images, or of another kind.
    """
    wanted = made | {
        **places.header(), "inputs": places.carries_inputs, "unit_images": unit_images,
    }  # fmt: skip
    leases = Leases(folder / LEASES, seconds)
    try:
        leases.do_once(
            PLAN_LEASE,
            lambda: is_parts_folder(folder),
            lambda: make_plan(folder, wanted, places, suffix, unit_images, begin),
        )
    finally:
        leases.close()
    plan = read_plan(folder)
    files = places.files_fingerprint()  # a list is read by now; None: it names nothing that could differ
    for key, value in (wanted | {"suffix": suffix, SET_OF_FILES: files}).items():
        before = plan.suffix if key == "suffix" else plan.made.get(key)
        if before != value and key != "batch" and not (key == SET_OF_FILES and value is None):
            raise UsageError(
                f"The parts in {row_name(str(folder))} were made with another {key.replace('_', ' ')} "
                f"({before}, now {value}).",
                hint="Choose another folder, or discard these parts with --overwrite.",
            )
    return plan


def make_plan(
    folder: Path, made: Made, places: Places, suffix: str, unit_images: int, begin: Callable[[], None]
) -> None:
    """Cut the images into units; what a killed process left of a plan is replaced."""
    shutil.rmtree(folder / LISTING, ignore_errors=True)
    shards = [source.place for source in places.sources if source.is_unit]
    listed = (image for source in places.sources if not source.is_unit for image in places.listed(source))
    slices = write_slices(listed, folder / LISTING, len(shards), unit_images)
    if not shards and not slices:
        raise UsageError(f"There is no image in {', '.join(row_name(one.place) for one in places.sources)}.")
    (folder / PARTS_FOLDER).mkdir(exist_ok=True)
    begin()
    write_json(
        folder / PLAN_FILE,
        {"schema": PARTS_SCHEMA, "made": made | {SET_OF_FILES: places.files_fingerprint()},
         "suffix": suffix, "shards": shards, "slices": slices, "several": not places.single},
    )  # fmt: skip


def discard_parts(folder: Path) -> None:
    """Remove everything that a plan has written, and nothing else.

    The plan goes last: parts without it would count as done for the next one.
    """
    for name in (PARTS_FOLDER, LISTING, LEASES, LOG):
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    (folder / PLAN_FILE).unlink(missing_ok=True)


def check_parts_folder(folder: Path) -> None:
    """Raise UsageError unless parts can be written to a folder: a new or empty one, or one of parts."""
    known = {PLAN_FILE, LISTING, PARTS_FOLDER, LEASES, LOG}
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{row_name(str(folder))} is not a folder.", hint="Choose another -o DIR/.")
    halves = f".{PLAN_FILE}."  # what a killed process left of it
    if folder.is_dir() and any(
        file.name not in known and not file.name.startswith(halves) for file in folder.iterdir()
    ):
        raise UsageError(
            f"{row_name(str(folder))} holds other files.", hint="Choose a new or empty folder for the parts."
        )
