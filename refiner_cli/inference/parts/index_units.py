"""An index made by several processes: each encodes units and writes their parts, and the last lists them all.

::

    INDEX/units/        plan, leases, a marker for every unit that is done, and the index without parts
    INDEX/parts/        the index's own parts, written as the units are done
    INDEX/index.json    written once all units are done: from then on it is an index like any other
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from refiner_cli.errors import UsageError
from refiner_cli.files import write_json
from refiner_cli.inference.index import PARTS, Index, IndexInfo, PartInfo, is_index
from refiner_cli.inference.index_update import Encoded, split_encoded
from refiner_cli.inference.indexing import empty_index_info, encode_images
from refiner_cli.inference.output import RowCount
from refiner_cli.inference.parts.lease import Leases
from refiner_cli.inference.parts.plan import LEASES, LISTING, PartPlan
from refiner_cli.inference.recogniser import Recogniser
from refiner_cli.inference.scan import PathFilter, row_name

UNITS_FOLDER = "units"
INDEX_LEASE = "index"
BEGINNING = "index.json"  # of the index, without its parts


@dataclass
class IndexUnitWriter:
    """Encodes the images of a unit into parts of an index that is not listed yet."""

    plan: PartPlan
    index: Index
    recogniser: Recogniser
    workers: int
    chosen: PathFilter
    note: Callable[[str], None]

    def __call__(self, unit: int) -> RowCount:
        encoded = encode_images(
            self.recogniser, self.index.info, self.plan.images(unit, self.chosen),
            batch=self.plan.made["batch"], workers=self.workers, log=self.note,
        )  # fmt: skip
        made: list[PartInfo] = []
        while group := list(islice(encoded, self.index.info.part_size)):
            made.append(self.write(unit, len(made), group))
        write_json(self.plan.part(unit), [part.model_dump() for part in made])
        return RowCount(sum(part.images for part in made), sum(part.errors for part in made))

    def write(self, unit: int, number: int, encoded: Sequence[Encoded]) -> PartInfo:
        errors = sum(one.row.status != "ok" for one in encoded)
        part = PartInfo(name=f"{unit:08d}-{number:08x}", images=len(encoded), errors=errors)
        self.index.write_part(part, *split_encoded(encoded, self.index.info.roles))
        return part


def beginning_of_index(
    folder: Path, recogniser: Recogniser, model: str, method: str, places: Sequence[str], part_size: int
) -> Index:
    """An index that is not on the disk yet; :func:`write_beginning` notes what it is.

    Raises:
        UsageError: the folder holds other files, or the method has no index.
    """
    info = empty_index_info(recogniser, model, method, places, part_size)
    if folder.exists() and not (folder / UNITS_FOLDER).is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"{row_name(str(folder))} holds other files.", hint="Choose a new or empty folder for the index."
        )
    (folder / PARTS).mkdir(parents=True, exist_ok=True)
    return Index(folder, info)


def write_beginning(index: Index) -> None:
    """Note what the index is; for the process that makes the plan, so that both are of one command."""
    write_json(index.folder / UNITS_FOLDER / BEGINNING, index.info.model_dump(by_alias=True))


def list_units(folder: Path, plan: PartPlan) -> bool:
    """Make the index of a folder count if every unit is done, and say whether it does."""
    if plan.count_done() < plan.units:
        return is_index(folder)
    leases = Leases(plan.folder / LEASES)
    try:
        leases.do_once(INDEX_LEASE, lambda: is_index(folder), lambda: save_listed(folder, plan))
    finally:
        leases.close()
    return True


def save_listed(folder: Path, plan: PartPlan) -> None:
    """Write the list of all parts, which makes the folder an index, and remove the listing of images."""
    content = json.loads((plan.folder / BEGINNING).read_text("utf-8"))
    index = Index(folder, IndexInfo.model_validate(content))
    markers = (json.loads(plan.part(unit).read_text("utf-8")) for unit in range(plan.units))
    index.info.parts = [PartInfo.model_validate(part) for parts in markers for part in parts]
    index.info.next_part = plan.units
    index.save()
    shutil.rmtree(plan.folder / LISTING, ignore_errors=True)
