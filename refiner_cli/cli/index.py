"""``refiner index``: compute what prediction needs of every image once, and keep it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refiner_cli.cli.common import Device, ModelPath, Precision, Workers, open_model
from refiner_cli.cli.console import PARTLY_DONE, Json, terminal
from refiner_cli.cli.inputs import (
    PATHS_HELP,
    Exclude,
    Include,
    NullSeparated,
    find_images,
    name_places,
    open_places,
    stop_with_saved_rows,
)
from refiner_cli.cli.outputs import check_output_folder
from refiner_cli.cli.part_indexing import IndexRequest, index_units
from refiner_cli.cli.part_options import Devices, Engine, PartShare, choose_index_parts
from refiner_cli.cli.preparation import EncodingOptions, name_model, prepare_recogniser
from refiner_cli.errors import UsageError

if TYPE_CHECKING:
    from refiner_cli.inference.index import Index


def index(
    model: ModelPath,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help=f"{PATHS_HELP}.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="The index folder.")],
    include: Include = None,
    exclude: Exclude = None,
    null: NullSeparated = False,
    part_size: Annotated[int, typer.Option(min=1, help="Images per part of a new index.")] = 4096,
    part: PartShare = None,
    devices: Devices = None,
    engine: Engine = "local",
    device: Device = "auto",
    precision: Precision = "auto",
    batch: Annotated[int, typer.Option(min=0, help="Images per batch; 0: automatic.")] = 0,
    workers: Workers = -1,
    as_json: Json = False,
) -> None:
    """Encode images once, into an index.

    Predictions from it and searches in it take seconds. The same command again brings it up to date.
    """
    from refiner_cli.inference.indexing import check_indexable, index_images, open_for_writing
    from refiner_cli.inference.scan import PathFilter

    check_output_folder("-o", out)
    parts = choose_index_parts(out, part, part_size, devices, engine)
    encoding = EncodingOptions(precision, batch, workers)
    if parts:
        request = IndexRequest(
            model, paths, out, tuple(include or ()), tuple(exclude or ()), null, part_size, device, encoding
        )
        report_index(index_units(request, parts), as_json=as_json)
        return
    chosen = PathFilter(tuple(include or ()), tuple(exclude or ()), (out,))
    places = open_places(paths, chosen, null=null)
    images, total = find_images(places, paths)
    loaded, info = open_model(model, device)
    check_indexable(loaded)
    prepared = prepare_recogniser(loaded, None, encoding)
    opened = open_for_writing(
        out, prepared.recogniser, name_model(model), info.method, name_places(paths, places), part_size
    )
    with opened.locked(), stop_with_saved_rows(out), terminal.progress("indexing") as progress:
        changes = index_images(
            prepared.recogniser, opened, images, batch=prepared.batch, workers=prepared.workers,
            log=terminal.note, progress=lambda done: progress(done, total()),
            out_of_reach=places.out_of_reach,
        )  # fmt: skip
    if not opened.images:
        raise UsageError(f"The index {out} holds no image.")
    if as_json:
        terminal.json({
            "schema": "refiner.index-update/1", "folder": str(out), "images": opened.images,
            "errors": opened.errors, "encoded": changes.encoded, "kept": changes.kept,
            "dropped": changes.dropped,
        })  # fmt: skip
    else:
        terminal.note(
            f"{opened.images} images in {out}: {changes.encoded} encoded, {changes.kept} as they were, "
            f"{changes.dropped} dropped, {opened.errors} unreadable"
        )
        terminal.next("refiner", "search", out, "a composition")
    if opened.errors:
        raise typer.Exit(PARTLY_DONE)


def report_index(made: Index | None, *, as_json: bool) -> None:
    """Say what several processes have made. Raises typer.Exit where images could not be read."""
    if made is None:
        return
    if as_json:
        terminal.json({"schema": "refiner.index-update/1", "folder": str(made.folder), "images": made.images,
                       "errors": made.errors, "encoded": made.images, "kept": 0, "dropped": 0})  # fmt: skip
    else:
        terminal.note(f"{made.images} images in {made.folder}, {made.errors} unreadable")
    if made.errors:
        raise typer.Exit(PARTLY_DONE)
