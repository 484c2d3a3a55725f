"""A whole prediction run: from places to a finished output, going on where an earlier one stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from refiner_cli.errors import RefinerError
from refiner_cli.inference.decoding import make_batches
from refiner_cli.inference.formats import JsonLines, Row
from refiner_cli.inference.output import Count, Header, Output
from refiner_cli.inference.predict import predict_batches
from refiner_cli.inference.recogniser import Recogniser
from refiner_cli.inference.scan import ImageFile, name_digest
from refiner_cli.inference.team import Team


@dataclass(frozen=True)
class PredictOptions:
    """How to run."""

    top_k: int = 5
    batch: int = 32  # images encoded at once
    workers: int = 0  # processes that decode; 0: this one does
    stop_at_error: bool = False
    heatmaps: Path | None = None  # a folder for pictures of what the queries look at


OnRow = Callable[[Row | None], None]  # gets every row, and None for an image that has one already
LogFn = Callable[[str], None]


def predict_to_output(
    output: Output,
    recogniser: Recogniser,
    found: Iterable[ImageFile],
    places: Sequence[str],
    plan: PredictOptions,
    team: Team,
    *,
    overwrite: bool,
    watch: OnRow,
    log: LogFn,
) -> Count:
    """Make sure that every file has one row in the output, and return how many there are.

    Args:
        places: where ``found`` comes from; the names of rows are relative to it.

    Raises:
        UsageError: what is in the output was made with another model, vocabulary, or the like.
        RefinerError: an image cannot be read and the plan is to stop then, or the output is in use.
    """
    header: Header = {**recogniser.fingerprint(), "top_k": plan.top_k, "places": list(places),
                      "batch": plan.batch}  # fmt: skip
    with output.locked() if team.leads else nullcontext():
        if team.leads:
            header = output.prepare(header, overwrite=overwrite)
        team.wait()
        header = output.accepted(header)
        done = output.done()
        team.wait()  # nobody writes while another still reads

        def wanted(one: ImageFile) -> bool:
            new = name_digest(one.name) not in done
            if not new:
                watch(None)
            return new

        some = filter(team.mine, make_batches(found, header["batch"], wanted))
        with output.writing() as sink:
            write_rows(
                predict_batches(recogniser, some, top_k=plan.top_k, workers=plan.workers,
                               heatmaps=plan.heatmaps, log=log),
                sink, watch, stop_at_error=plan.stop_at_error,
            )  # fmt: skip
        team.wait()
        count = output.finish(header) if team.leads else Count(0, 0)
        team.wait()
    return count


def predict_to_stream(
    stream: TextIO,
    recogniser: Recogniser,
    found: Iterable[ImageFile],
    plan: PredictOptions,
    *,
    watch: OnRow,
    log: LogFn,
) -> Count:
    """Write the rows to a stream as JSON lines. Raises RefinerError as :func:`predict_into`."""
    some = make_batches(found, plan.batch, lambda _: True)
    rows = predict_batches(recogniser, some, top_k=plan.top_k, workers=plan.workers,
                          heatmaps=plan.heatmaps, log=log)  # fmt: skip
    return write_rows(rows, JsonLines(stream), watch, stop_at_error=plan.stop_at_error)


def write_rows(rows: Iterable[Row], sink: JsonLines, watch: OnRow, *, stop_at_error: bool) -> Count:
    """Write rows as they come. Raises RefinerError at the first bad image if that is the plan."""
    images = errors = 0
    for row in rows:
        if row.prediction is None:
            if stop_at_error:
                raise RefinerError(row.error, hint="Without --on-error fail the run would go on.")
            errors += 1
        sink.write(row)
        images += 1
        watch(row)
    return Count(images, errors)
