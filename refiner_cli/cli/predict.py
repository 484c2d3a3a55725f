"""``refiner predict``: the compositions of images, folders of them, or a list."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TextIO

import typer

from refiner_cli.cli.common import Device, ModelPath, Precision, Workers, open_model, setting_for
from refiner_cli.cli.console import PARTLY_DONE, Json, terminal
from refiner_cli.errors import RefinerError, UsageError
from refiner_cli.files import whole_file


def predict(
    model: ModelPath,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Folders, files, or - for a list on stdin.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A .jsonl or .csv file.  [stdout, JSON lines]")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Guesses an image.")] = 5,
    world: Annotated[
        Literal["closed", "open"], typer.Option(help="Known pairs, or every combination.")
    ] = "closed",
    states: Annotated[Path | None, typer.Option(help="Own states, one a line.")] = None,
    objects: Annotated[Path | None, typer.Option(help="Own objects, one a line.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Own pairs, 'state object' a line.")] = None,
    on_error: Annotated[
        Literal["skip", "fail"], typer.Option(help="What an unreadable image does.")
    ] = "skip",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output file.")] = False,
    device: Device = "auto",
    precision: Precision = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Images encoded at once.")] = 64,
    workers: Workers = -1,
    as_json: Json = False,
) -> None:
    """Recognise images: one row each, unreadable ones too."""
    if out and out.suffix not in {".jsonl", ".csv"}:
        raise UsageError(f"The output {out} is of no known kind.", hint="Use .jsonl or .csv.")
    if out and out.exists() and not overwrite:
        raise UsageError(f"The output {out} exists already.", hint="Use another name or --overwrite.")
    if as_json and not out:
        raise UsageError("--json prints a summary on stdout, so the rows need a file.", hint="Add -o FILE.")
    from refiner_cli.inference.predict import predict_files
    from refiner_cli.inference.recogniser import Recogniser
    from refiner_cli.inference.scan import scan
    from refiner_cli.inference.sink import open_sink
    from refiner_cli.inference.vocabulary import choose_space

    places = [Path(line.strip()) for line in sys.stdin if line.strip()] if paths == [Path("-")] else paths
    found = list(scan(places))
    if not found:
        raise UsageError(f"There is no image in {', '.join(map(str, places))}.")
    loaded, _ = open_model(model, device)
    space = choose_space(loaded.space, world, states, objects, pairs)
    setting = setting_for(loaded, precision, workers, batch)
    recogniser = Recogniser(loaded, space, setting.precision)
    failed = 0
    with opened(out) as stream, terminal.progress("predicting") as progress:
        sink = open_sink(out.suffix if out else ".jsonl", stream, top_k)
        rows = predict_files(recogniser, found, top_k=top_k, batch=batch, workers=setting.workers)
        for done, row in enumerate(rows, 1):
            if row.prediction is None:
                failed += 1
                if on_error == "fail":
                    raise RefinerError(row.error)
                terminal.note(row.error)
            sink.write(row)
            progress(done, len(found))
    if as_json:
        terminal.json(
            {"schema": "refiner.predict/1", "images": len(found), "errors": failed, "out": str(out)}
        )
    elif failed:
        terminal.note(f"{failed} of {len(found)} images could not be read")
    if failed:
        raise typer.Exit(PARTLY_DONE)


@contextlib.contextmanager
def opened(out: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears when it is whole."""
    if out is None:
        yield sys.stdout
        return
    with whole_file(out) as part, part.open("w", encoding="utf-8", newline="") as stream:
        yield stream
