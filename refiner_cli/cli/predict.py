"""``refiner predict``: the compositions of images, folders of them, or a list."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from refiner_cli.cli.common import Device, ModelPath, Precision, Workers, open_model
from refiner_cli.cli.console import INTERRUPTED, PARTLY_DONE, Json, terminal
from refiner_cli.errors import UsageError

if TYPE_CHECKING:
    from refiner_cli.inference.formats import Row
    from refiner_cli.inference.scan import ImageFile, PathFilter

STDIN = [Path("-")]


def predict(
    model: ModelPath,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Folders, files, or - for a list on stdin.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="A .jsonl, .csv or .parquet file.  [stdout, JSON lines]"),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Guesses an image.")] = 5,
    world: Annotated[
        Literal["closed", "open"], typer.Option(help="Known pairs, or every combination.")
    ] = "closed",
    states: Annotated[Path | None, typer.Option(help="Own states, one a line.")] = None,
    objects: Annotated[Path | None, typer.Option(help="Own objects, one a line.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Own pairs, 'state object' a line.")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only such files of a folder: '*.jpg'.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="No such files or folders: 'raw/*'.")] = None,
    on_error: Annotated[
        Literal["skip", "fail"], typer.Option(help="What an unreadable image does.")
    ] = "skip",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew; else an existing output is gone on with.")
    ] = False,
    gallery: Annotated[Path | None, typer.Option(help="An .html page to look through the results.")] = None,
    heatmaps: Annotated[
        Path | None, typer.Option(help="A folder for pictures of what the concept queries look at.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch: Annotated[int, typer.Option(min=0, help="Images encoded at once; 0: by the machine.")] = 0,
    workers: Workers = -1,
    as_json: Json = False,
) -> None:
    """Recognise images, one row each; the same command again goes on where it stopped."""
    from refiner_cli.inference.formats import format_of
    from refiner_cli.inference.scan import PathFilter, locate, origin

    rank, processes = (int(os.environ.get(*name)) for name in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if out is None and (as_json or gallery):
        raise UsageError("A summary or a gallery needs the rows in a file.", hint="Add -o FILE.")
    if processes > 1 and (out is None or paths == STDIN):
        raise UsageError("Several processes need -o FILE, and folders rather than a list on stdin.")
    if out:
        format_of(out)
    terminal.quiet = terminal.quiet or rank > 0
    found, total = find_images(paths, PathFilter(include or (), exclude or ()))
    from refiner_cli.core.runtime.device import pick_precision
    from refiner_cli.core.runtime.loader import pick_num_workers
    from refiner_cli.inference.batch_size import pick_batch_size
    from refiner_cli.inference.gallery import write_gallery
    from refiner_cli.inference.output import Output
    from refiner_cli.inference.recogniser import Recogniser
    from refiner_cli.inference.runner import PredictOptions, predict_to_output, predict_to_stream
    from refiner_cli.inference.team import prediction_team
    from refiner_cli.inference.vocabulary import choose_space

    with prediction_team(rank, processes) as team:
        loaded, _ = open_model(model, device)
        space = choose_space(loaded.space, world, states, objects, pairs)
        dtype, why = pick_precision(precision, loaded.device)
        recogniser = Recogniser(loaded, space, dtype)
        if heatmaps and not recogniser.has_queries:
            raise UsageError("This model has no concept queries to draw.", hint="Leave --heatmaps out.")
        size, because = pick_batch_size(batch, recogniser)
        count, reason = pick_num_workers(workers, loaded.device)
        name = str(dtype).removeprefix("torch.")
        terminal.note(
            f"precision {name} ({why}), batch {size} ({because}), {count} decoding processes ({reason})"
        )
        plan = PredictOptions(top_k, size, count, stop_at_error=on_error == "fail", heatmaps=heatmaps)
        with stop_with_saved_rows(), terminal.progress("predicting") as progress:
            follow = PredictProgress(progress, total, processes)
            if out is None:
                made = predict_to_stream(sys.stdout, recogniser, found, plan, watch=follow, log=terminal.note)
            else:
                made = predict_to_output(
                    Output(out, top_k, rank, processes), recogniser, found, origin(paths), plan, team,
                    overwrite=overwrite, watch=follow, log=terminal.note,
                )  # fmt: skip
        if gallery and out and team.leads:
            shown = write_gallery(gallery, out, lambda name: locate(paths, name), workers=count)
            terminal.note(f"gallery {gallery} ({shown} images)")
    if rank > 0:
        return
    if as_json:
        terminal.json({"schema": "refiner.predict/1", "images": made.images, "errors": made.errors,
                       "new": follow.new, "out": str(out)})  # fmt: skip
    elif made.errors:
        terminal.note(f"{made.errors} of {made.images} images could not be read")
    if made.errors:
        raise typer.Exit(PARTLY_DONE)


def find_images(paths: list[Path], chosen: PathFilter) -> tuple[Iterator[ImageFile], Callable[[], int]]:
    """The images, and how many there are as soon as that is known. Raises UsageError if there is none."""
    from refiner_cli.inference.scan import count_aside, list_files, scan

    if paths == STDIN:
        lines = (line.rstrip("\n") for line in sys.stdin)
        return list_files((Path(line) for line in lines if line), chosen), lambda: 0
    found = scan(paths, chosen)
    first = next(found, None)
    if first is None:
        raise UsageError(f"There is no image in {', '.join(map(str, paths))}.")
    return chain([first], found), count_aside(scan(paths, chosen))


@contextlib.contextmanager
def stop_with_saved_rows() -> Iterator[None]:
    """An interrupt loses nothing, and a reader of the rows may have had enough of them."""
    try:
        yield
    except KeyboardInterrupt:
        terminal.note("stopped; with an output file, the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # Or Python would fail once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None


class PredictProgress:
    """Tells of every image what there is to tell; the other processes are thought to be as fast."""

    def __init__(self, progress: Callable[[int, int], None], total: Callable[[], int], team: int) -> None:
        self.progress, self.total, self.team = progress, total, team
        self.old = self.new = 0

    def __call__(self, row: Row | None) -> None:
        if row is None:
            self.old += 1
        else:
            self.new += 1
            if row.error:
                terminal.note(row.error)
        self.progress(self.old + self.new * self.team, self.total())
