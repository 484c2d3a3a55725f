"""``refiner index`` by several processes: they share the images, and the last one makes the index."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refiner_cli.cli.common import open_model
from refiner_cli.cli.console import terminal
from refiner_cli.cli.inputs import STDIN, name_places, open_places, stop_with_saved_rows
from refiner_cli.cli.part_work import compute_units, lease_seconds, share_of
from refiner_cli.cli.preparation import EncodingOptions, name_model, prepare_recogniser
from refiner_cli.errors import UsageError

if TYPE_CHECKING:
    from refiner_cli.cli.predict_request import PartsRequest
    from refiner_cli.inference.index import Index
    from refiner_cli.inference.parts.index_units import IndexUnitWriter


@dataclass(frozen=True)
class IndexRequest:
    """What the command line says."""

    model: Path
    paths: list[str]
    out: Path
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    null: bool
    part_size: int
    device: str
    encoding: EncodingOptions


def index_units(request: IndexRequest, parts: PartsRequest) -> Index | None:
    """Encode the units of this process; the index, if it is complete now.

    Raises UsageError if the folder holds something else, or an index of another model or other images.
    """
    from refiner_cli.inference.index import Index, is_index
    from refiner_cli.inference.parts.index_units import UNITS_FOLDER, list_units

    if request.paths == STDIN and parts.devices:
        raise UsageError("A list on stdin is read by one process.", hint="Leave --devices out.")
    if is_index(request.out):
        made = open_complete(request)
        terminal.note(
            f"the index {request.out} is complete; without --part, --devices and --engine it is updated"
        )
        return made
    share = share_of(parts)
    with stop_with_saved_rows(request.out):
        plan = compute_units(parts, share, request.out / UNITS_FOLDER, partial(plan_index, request))
        if list_units(request.out, plan):
            return Index.open(request.out)
    terminal.note(f"{plan.count_done()} of {plan.units} units done; next: the other parts")
    return None


def open_complete(request: IndexRequest) -> Index:
    """The index that is there already. Raises UsageError for that of another model or of other images."""
    from refiner_cli.inference.indexing import open_for_writing
    from refiner_cli.inference.scan import NO_FILTER

    places = open_places(request.paths, NO_FILTER, null=request.null)
    model, info = open_model(request.model, request.device)
    recogniser = prepare_recogniser(model, None, request.encoding).recogniser
    named = name_places(request.paths, places)
    return open_for_writing(request.out, recogniser, name_model(request.model), info.method, named)


def plan_index(request: IndexRequest, device: str | None) -> IndexUnitWriter:
    """The model, and the plan of the index, which the first process makes.

    Args:
        device: of this process; None: as requested.
    """
    from refiner_cli.inference.indexing import vector_facts
    from refiner_cli.inference.parts.index_units import (
        UNITS_FOLDER,
        IndexUnitWriter,
        beginning_of_index,
        write_beginning,
    )
    from refiner_cli.inference.parts.plan import open_plan
    from refiner_cli.inference.scan import PathFilter

    chosen = PathFilter(request.include, request.exclude, (request.out,))
    places = open_places(request.paths, chosen, null=request.null)
    model, info = open_model(request.model, device or request.device)
    prepared = prepare_recogniser(model, None, request.encoding)
    index = beginning_of_index(
        request.out, prepared.recogniser, name_model(request.model), info.method,
        name_places(request.paths, places), request.part_size,
    )  # fmt: skip
    made: dict[str, Any] = dict(vector_facts(prepared.recogniser))
    made |= {"batch": prepared.batch, "include": list(request.include), "exclude": list(request.exclude)}
    plan = open_plan(
        request.out / UNITS_FOLDER, made, places, ".json", request.part_size, lease_seconds(),
        partial(write_beginning, index),
    )  # fmt: skip
    return IndexUnitWriter(plan, index, prepared.recogniser, prepared.workers, chosen, terminal.note)
