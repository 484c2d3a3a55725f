"""``refiner convert``: predictions into the formats of labelling tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from refiner_cli.cli.console import PARTLY_DONE, Json, terminal
from refiner_cli.cli.outputs import check_new_folder, check_output_file
from refiner_cli.errors import InputError, UsageError
from refiner_cli.printable import quoted

Format = Literal["label-studio", "fiftyone", "image-folder", "csv", "cleanlab", "megadetector"]


def convert(
    answers: Annotated[
        Path,
        typer.Argument(metavar="ANSWERS", help="What 'refiner predict -o' or 'refiner suggest -o' wrote."),
    ],
    to: Annotated[Format, typer.Option(help="The format.")],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", metavar="OUT", help="A new folder, or file (csv, cleanlab, megadetector)."
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The folder of the photos, if it is not where it was predicted from."
        ),
    ] = None,
    min_probability: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out images whose best pair has less.")
    ] = 0.0,
    states: Annotated[
        Path | None, typer.Option(help="Text file of states that a labeller may choose as well.")
    ] = None,
    objects: Annotated[Path | None, typer.Option(help="Text file of objects, likewise.")] = None,
    url_prefix: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Label Studio: photos are served at this address and their path."),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="image-folder: copy photos instead of linking.")
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="SOURCE",
            help="cleanlab: the labels to check, anything that 'refiner dataset create' reads.",
        ),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="megadetector: the JSON that the boxes came from, to complete it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert predictions for labelling tools.

    For Label Studio, FiftyOne, cleanlab and MegaDetector; folders and CSV for 'refiner dataset create'.
    """
    from refiner_cli.core.models.calibration import LEVELS
    from refiner_cli.data.create.sources import read_photos
    from refiner_cli.data.lists import read_names
    from refiner_cli.inference.convert.answers import Answers, is_unfinished, noted_places
    from refiner_cli.inference.convert.conversion import (
        WRITERS,
        check_target,
        convert_answers,
        count_reasons,
        labels_by_file,
    )
    from refiner_cli.inference.convert.writer import ConvertOptions
    from refiner_cli.inference.scan import row_name
    from refiner_cli.inference.sources.noted import NotedPlaces

    writer = WRITERS[to]
    (check_output_file if writer.suffix else check_new_folder)("-o", out)
    for place in filter(None, (answers, images)):
        if not place.exists():
            raise InputError(f"There is no file or folder {row_name(str(place))}.")
    places = NotedPlaces([row_name(str(images.absolute()))]) if images else noted_places(answers)
    found = Answers(answers, places, min_probability)
    check_target(writer, out, found)
    if writer.needs_labels != (labels is not None):
        raise UsageError(
            f"--to {to} needs --labels SOURCE." if writer.needs_labels else f"--to {to} takes no --labels.",
            hint="It is a folder of state/object/ folders, a table, or a Label Studio export.",
        )
    options = ConvertOptions(
        read_names(states, "state", (), terminal.note) if states else (),
        read_names(objects, "object", (), terminal.note) if objects else (),
        url_prefix,
        copy,
        labels_by_file(read_photos(labels)) if labels else {},
        boxes,
    )
    if is_unfinished(answers):
        terminal.note(f"{answers} is not complete: what it holds so far is converted")
    if not url_prefix and (lost := found.first_lost()):
        terminal.note(
            f"there are no photos such as {row_name(lost.where)}; --images DIR says where they are now"
        )
    made = convert_answers(found, writer, out, options)
    if as_json:
        terminal.json(
            {"schema": "refiner.convert/1", "to": to, "out": str(out), "images": made.images,
             "verdicts": dict(found.verdicts), "left_out": dict(found.left_out)}
        )  # fmt: skip
    else:
        terminal.note(f"{made.images} images in {out}{count_reasons(found)}")
        if found.verdicts and writer.honours_verdicts:
            counts = ", ".join(f"{level} {found.verdicts[level]}" for level in (*LEVELS, "unknown"))
            terminal.note(f"verdicts: {counts}; only what is sure is written")
        for note in made.notes:
            terminal.note(note.replace("{out!r}", repr(str(out))).replace("{out}", quoted(out)))
    if sum(found.left_out.values()) > found.left_out["below --min-probability"]:
        raise typer.Exit(PARTLY_DONE)
