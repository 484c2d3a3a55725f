"""``refiner predict -o DIR/``: parts, by one process or many that share them."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import typer

from refiner_cli.cli.console import PARTLY_DONE, terminal
from refiner_cli.cli.inputs import STDIN, local_paths, open_boxes, open_places, stop_with_saved_rows
from refiner_cli.cli.prediction import index_of, prepare_prediction
from refiner_cli.cli.prediction_rows import ProgressListener
from refiner_cli.errors import RefinerError, UsageError

if TYPE_CHECKING:
    from refiner_cli.cli.predict_request import PartsRequest, PredictRequest
    from refiner_cli.inference.output import RowCount
    from refiner_cli.inference.parts.plan import PartPlan
    from refiner_cli.inference.parts.share import Share
    from refiner_cli.inference.parts.work import Compute, PartWriter
    from refiner_cli.inference.runner import PredictListener


def predict_parts(request: PredictRequest, *, as_json: bool) -> None:
    """Predict into a folder of parts and report. Raises typer.Exit for an outcome that is not 0."""
    from refiner_cli.inference.destinations import Destinations
    from refiner_cli.inference.parts.plan import check_parts_folder, discard_parts
    from refiner_cli.inference.parts.work import count_rows

    assert request.out is not None  # noqa: S101 - there are parts
    check_parts_request(request)
    Destinations(heatmaps=request.heatmaps).check(local_paths(request.paths))
    check_parts_folder(request.out)
    share = share_of(request.parts)
    if request.overwrite:
        if share.count > 1:
            raise UsageError("--overwrite would discard what the other parts do.", hint="Delete the folder.")
        discard_parts(request.out)
    with stop_with_saved_rows():
        plan = compute_parts(replace(request, overwrite=False), share)
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
        terminal.note(
            f"{done} of {units} units done, {made.images:,} images{wrong}, parts in {request.out}; "
            + ("next: refiner merge, for one file" if done == units else "next: the other parts")
        )
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


def share_of(parts: PartsRequest | None) -> Share:
    """The units of this process, as asked or as its launcher says."""
    from refiner_cli.inference.parts.share import launched_share, parse_share

    share = parse_share(parts.part) if parts and parts.part else launched_share(os.environ)
    if share.count > 1:
        terminal.note(f"part {share.index + 1} of {share.count} ({share.reason})")
    return share


def compute_parts(request: PredictRequest, share: Share) -> PartPlan:
    """Make sure that the parts of a share are there."""
    from refiner_cli.inference.parts.processes import run_processes
    from refiner_cli.inference.parts.ray_engine import import_ray, run_ray
    from refiner_cli.inference.parts.work import run_units

    parts = request.parts
    assert parts is not None  # noqa: S101 - the caller has checked
    if parts.devices:
        codes = run_processes(list_devices(parts.devices), partial(predict_on_device, request, share))
        if not any(code == 0 for code in codes):
            raise RefinerError("Every process ended with an error.", hint="Their own messages say why.")
        return read_folder(request)
    if parts.engine == "ray":
        import_ray()
    writer = plan_parts(local_device(request), ProgressListener(lambda *_: None, lambda: 0))
    plan = writer.plan
    with terminal.progress("units") as progress:
        finished = sum(map(plan.is_done, share.units(plan.units)))

        def count() -> None:
            nonlocal finished
            finished += 1
            progress(finished, len(range(share.index, plan.units, share.count)))

        if parts.engine == "ray":
            run_ray(plan, share, partial(make_writer, request), count, lease_seconds())
        else:
            run_units(plan, share, writer, lease_seconds(), count)
    return plan


def local_device(request: PredictRequest) -> PredictRequest:
    """Each process that torchrun started on a machine takes a GPU of its own."""
    import torch

    rank = os.environ.get("LOCAL_RANK", "").strip()
    if rank.isdecimal() and request.device in {"auto", "cuda"} and torch.cuda.is_available():
        return replace(request, device=f"cuda:{int(rank) % torch.cuda.device_count()}")
    return request


def list_devices(text: str) -> list[str]:
    """The devices of ``--devices``: all GPUs of this machine, or those of a list. Raises UsageError."""
    import torch

    if text != "all":
        devices = [device.strip() for device in text.split(",") if device.strip()]
        devices = [f"cuda:{device}" if device.isdecimal() else device for device in devices]
        if not devices:
            raise UsageError("--devices names no device.", hint="Use all, or a list such as cuda:0,cuda:1.")
        return devices
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["auto"]


def predict_on_device(request: PredictRequest, share: Share, device: str) -> int:
    """What the process of one device does; returns its exit code."""
    from refiner_cli.inference.parts.work import run_units

    terminal.quiet = True
    try:
        writer = plan_parts(replace(request, device=device))
        run_units(writer.plan, share, writer, lease_seconds())
    except RefinerError as error:
        terminal.error(error)
        return error.exit_code
    return 0


def make_writer(request: PredictRequest) -> Compute:
    """What an actor of Ray computes units with."""
    terminal.quiet = True
    return plan_parts(request)


def plan_parts(request: PredictRequest, listener: PredictListener | None = None) -> PartWriter:
    """The model, and the plan of the folder, which the first process makes."""
    from refiner_cli.inference.destinations import Destinations
    from refiner_cli.inference.parts.plan import LOG, open_plan
    from refiner_cli.inference.parts.work import PartWriter, WorkLog
    from refiner_cli.inference.scan import PathFilter

    assert request.out is not None  # noqa: S101 - there are parts
    assert request.parts is not None  # noqa: S101
    chosen = PathFilter(
        request.include, request.exclude, (*Destinations(heatmaps=request.heatmaps).all(), request.out)
    )
    recogniser, options, _ = prepare_prediction(request)
    Destinations(heatmaps=request.heatmaps).make_heatmap_folder()
    made = {**recogniser.fingerprint(), "top_k": options.top_k, "batch": options.batch,
            "include": list(request.include), "exclude": list(request.exclude)}  # fmt: skip
    boxes = open_boxes(request.boxes, request.box_margin, request.box_confidence)
    places = open_places(request.paths, chosen, null=request.null, boxes=boxes)
    plan = open_plan(request.out, made, places, f".{request.rows}", request.parts.size, lease_seconds())
    reporter = listener or ProgressListener(lambda *_: None, lambda: 0)
    return PartWriter(plan, recogniser, options, chosen, reporter, WorkLog(request.out / LOG), boxes)


def read_folder(request: PredictRequest) -> PartPlan:
    from refiner_cli.inference.parts.plan import read_plan

    assert request.out is not None  # noqa: S101 - there are parts
    return read_plan(request.out)


def lease_seconds() -> float:
    """How long a process may give no sign of life: ``REFINER_LEASE_SECONDS``, 60 by default."""
    from refiner_cli.inference.parts.lease import LEASE_SECONDS

    text = os.environ.get("REFINER_LEASE_SECONDS", "").strip()
    try:
        seconds = float(text or LEASE_SECONDS)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86400:
        raise UsageError(f"REFINER_LEASE_SECONDS is {text!r}, which is not a number from 1 to 86400.")
    return seconds
