"""``refiner suggest``: the images of an index that are worth labelling next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from refiner_cli.cli.common import Device, Precision
from refiner_cli.cli.console import Json, new_table, terminal
from refiner_cli.cli.index_inputs import IndexModel, IndexPath, ListFormat, OpenIndex, pick_list_format
from refiner_cli.cli.outputs import HTML_SUFFIXES, OutputFile, check_outputs
from refiner_cli.printable import json_text

if TYPE_CHECKING:
    from refiner_cli.inference.index import Index


def suggest(
    index: IndexPath,
    count: Annotated[int, typer.Option(min=1, help="How many images to list.")] = 50,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A .jsonl file for the rows, for 'refiner convert'.")
    ] = None,
    gallery: Annotated[
        Path | None, typer.Option(help="Write an .html page with the images, to label them there.")
    ] = None,
    labelled: Annotated[
        Path | None,
        typer.Option(
            metavar="SOURCE", help="Photos that have labels, anything that 'refiner dataset create' reads."
        ),
    ] = None,
    model: IndexModel = None,
    world: Annotated[
        Literal["closed", "open"],
        typer.Option(help="Candidates: the pairs of the model, or every state with every object."),
    ] = "closed",
    states: Annotated[Path | None, typer.Option(help="Text file of your own states, one per line.")] = None,
    objects: Annotated[Path | None, typer.Option(help="Text file of your own objects, one per line.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Text file of your own pairs, 'state object' per line.")
    ] = None,
    output_format: ListFormat = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """List the images of an index to label next.

    These are images of unseen pairs, and images that the model is undecided about, unlike one another.
    """
    check_outputs([OutputFile("-o", out, (".jsonl",)), OutputFile("--gallery", gallery, HTML_SUFFIXES)])
    from refiner_cli.inference.row_files import refuse_predictions
    from refiner_cli.inference.suggest import suggest_images, write_suggestions
    from refiner_cli.inference.vocabulary import choose_space

    if out:
        refuse_predictions(out)
    opened = OpenIndex.open(index, model, device, precision)
    space = choose_space(opened.model.space, world, states, objects, pairs, terminal.note)
    recogniser, is_labelled = opened.recogniser(space), labels_test(labelled, opened.index)
    with terminal.progress("looking") as progress:
        found = suggest_images(opened.index, recogniser, count, is_labelled=is_labelled, progress=progress)
    rows: list[dict[str, Any]] = [one.to_json() for one in found]
    if out:
        write_suggestions(out, rows, opened.index)
        terminal.note(f"{len(rows)} images in {out}")
    if gallery:
        cards = ({**row, "note": f"{row['rank']}. {row['note']}"} for row in rows)
        opened.write_gallery(gallery, f"To label next: {index.name}", cards)
    if as_json:
        terminal.json({"schema": "refiner.suggest/1", "images": rows})
    elif out:
        terminal.next("refiner", "convert", out, "--to", "label-studio", "-o", "DIR")
    elif pick_list_format(output_format) == "jsonl":
        for row in rows:
            terminal.data(json_text(row))
    else:
        table = new_table(f"To label next: {index.name}", "image", "reason", "")
        for column in table.columns:
            column.justify = "left"
        for row in rows:
            table.add_row(row["path"], row["reason"], row["note"])
        terminal.table(table)


def labels_test(source: Path | None, index: Index) -> Callable[[str], bool] | None:
    """Whether an image of an index is among labelled photos, by its file."""
    if source is None:
        return None
    from refiner_cli.data.create.sources import read_photos
    from refiner_cli.inference.sources.noted import NotedPlaces

    files = {photo.file.resolve() for photo in read_photos(source).photos}
    places = NotedPlaces(index.info.places)
    return lambda name: Path(places.locate(name)).resolve() in files
