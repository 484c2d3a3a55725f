"""``refiner predict -o DIR/``: parts, by one process or many that share them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import typer

from refiner_cli.cli.console import PARTLY_DONE, terminal
from refiner_cli.cli.inputs import STDIN, local_paths, open_boxes, open_places, stop_with_saved_rows
from refiner_cli.cli.part_work import compute_units, lease_seconds, share_of
from refiner_cli.cli.prediction import index_of, prepare_prediction
from refiner_cli.cli.prediction_rows import ProgressListener
from refiner_cli.errors import RefinerError, UsageError

if TYPE_CHECKING:
    from refiner_cli.cli.predict_request import PredictRequest
    from refiner_cli.inference.output import RowCount
    from refiner_cli.inference.parts.work import PartWriter


def predict_parts(request: PredictRequest, *, as_json: bool) -> None:
    """Predict into a folder of parts and report. Raises typer.Exit for an outcome that is not 0."""
    from refiner_cli.inference.destinations import Destinations
    from refiner_cli.inference.parts.plan import check_parts_folder, discard_parts
    from refiner_cli.inference.parts.work import count_rows

    assert request.out is not None  # noqa: S101 - there are parts
    assert request.parts is not None  # noqa: S101
    check_parts_request(request)
    Destinations(heatmaps=request.heatmaps).check(local_paths(request.paths))
    check_parts_folder(request.out)
    share = share_of(request.parts)
    if request.overwrite:
        if share.count > 1:
            raise UsageError("--overwrite would discard what the other parts do.", hint="Delete the folder.")
        discard_parts(request.out)
    with stop_with_saved_rows(request.out):
        plan = compute_units(
            request.parts, share, request.out, partial(plan_parts, replace(request, overwrite=False))
        )
    made, done = count_rows(plan), plan.count_done()
    left = sum(not plan.is_done(unit) for unit in share.units(plan.units))
    if left:
        raise RefinerError(f"{left} units in {request.out} are not done.", hint="The same command resumes.")
    report(request, made, done, plan.units, as_json=as_json)


def report(request: PredictRequest, made: RowCount, done: int, units: int, *, as_json: bool) -> None:
    """Say what there is now. Raises typer.Exit where images could not be read."""
    if as_json:
        terminal.json({"schema": "refiner.predict/1", "images": made.images, "errors": made.errors,
                       "units": units, "units_done": done, "out": str(request.out)})  # fmt: skip
    else:
        wrong = f", {made.errors:,} could not be read" if made.errors else ""
        missing = "" if done == units else "; next: the other parts"
        terminal.note(
            f"{done} of {units} units done, {made.images:,} images{wrong}, parts in {request.out}{missing}"
        )
        if done == units:
            terminal.next("refiner", "merge", request.out, "-o", "rows.csv", why="for one file")
    if made.errors:
        raise typer.Exit(PARTLY_DONE)


def check_parts_request(request: PredictRequest) -> None:
    """Raise UsageError for what an output of parts does not go with."""
    if request.paths == STDIN and request.parts and request.parts.devices:
        raise UsageError("A list on stdin is read by one process.", hint="Leave --devices out.")
    if index_of(request):
        raise UsageError("From an index rows are written into one file.", hint="Use -o FILE.")
    for option, given in (("--gallery", request.gallery), ("--keep-index", request.keep_index)):
        if given:
            raise UsageError(f"{option} does not go with an output of parts.", hint="Use -o FILE.")


def plan_parts(request: PredictRequest, device: str | None) -> PartWriter:
    """The model, and the plan of the folder, which the first process makes.

    Args:
        device: of this process; None: as requested.
    """
    from refiner_cli.inference.destinations import Destinations
    from refiner_cli.inference.parts.plan import LOG, open_plan
    from refiner_cli.inference.parts.work import PartWriter, WorkLog
    from refiner_cli.inference.scan import PathFilter

    assert request.out is not None  # noqa: S101 - there are parts
    assert request.parts is not None  # noqa: S101
    chosen = PathFilter(
        request.include, request.exclude, (*Destinations(heatmaps=request.heatmaps).all(), request.out)
    )
    recogniser, options, _ = prepare_prediction(replace(request, device=device or request.device))
    Destinations(heatmaps=request.heatmaps).make_heatmap_folder()
    made = {**recogniser.fingerprint(), "verdict_rule": str(recogniser.rule or "none"),
            "top_k": options.top_k, "batch": options.batch,
            "include": list(request.include), "exclude": list(request.exclude)}  # fmt: skip
    boxes = open_boxes(request.boxes, request.box_margin, request.box_confidence)
    places = open_places(request.paths, chosen, null=request.null, boxes=boxes)
    plan = open_plan(request.out, made, places, f".{request.rows}", request.parts.size, lease_seconds())
    listener = ProgressListener(lambda *_: None, lambda: 0)
    return PartWriter(plan, recogniser, options, chosen, listener, WorkLog(request.out / LOG), boxes)
