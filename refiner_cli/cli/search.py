"""``refiner search``: the images of an index that show a composition, a state, an object, or look alike."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from refiner_cli.cli.common import Device, Precision, open_model
from refiner_cli.cli.console import Json, new_table, terminal
from refiner_cli.errors import UsageError


def search(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="A folder that 'refiner index' made.")],
    query: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUERY...",
            help="Terms: 'rusty bike', state:rusty, object:bike. A term that begins with - is excluded; then "
            "write -- before the query.",
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="The model, if it is not where it was when the index was made.")
    ] = None,
    like: Annotated[Path | None, typer.Option(help="Find images that look like this one.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many images to list.")] = 20,
    min_score: Annotated[float | None, typer.Option(help="Leave out images with a lower score.")] = None,
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="table|jsonl", help="Default: a table on a terminal, else JSON lines."
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """List the images of an index that fit a query best, one JSON line per image."""
    if bool(query) == bool(like):
        raise UsageError("Give either a QUERY or --like FILE.")
    chosen = output_format or ("table" if sys.stdout.isatty() else "jsonl")
    if chosen not in {"table", "jsonl"}:
        raise UsageError(f"The format {chosen!r} is unknown.", hint="Use table or jsonl.")
    from refiner_cli.core.runtime.device import pick_precision
    from refiner_cli.inference.index import Index
    from refiner_cli.inference.query import encode_like, encode_query, parse_query
    from refiner_cli.inference.recogniser import Recogniser
    from refiner_cli.inference.search import search_index

    opened = Index.open(index)
    loaded, _ = open_model(model or Path(opened.info.model["path"]), device)
    recogniser = Recogniser(loaded, precision=pick_precision(precision, loaded.device)[0])
    opened.check_model(recogniser.fingerprint())
    asked = (
        encode_like(recogniser, like)
        if like
        else encode_query(loaded, parse_query(query or [], loaded.space))
    )
    with terminal.progress("searching") as progress:
        found = search_index(
            opened, asked, loaded.backbone.logit_scale, top=top,
            min_score=float("-inf") if min_score is None else min_score, progress=progress,
        )  # fmt: skip
    text = str(like) if like else " ".join(str(term) for term in asked.terms)
    if as_json:
        terminal.json({"schema": "refiner.search/1", "query": text, "hits": [hit.to_json() for hit in found]})
    elif chosen == "jsonl":
        for hit in found:
            terminal.data(json.dumps(hit.to_json(), ensure_ascii=False))
    else:
        table = new_table(text, "image", "score", "margin")
        for hit in found:
            table.add_row(hit.path, f"{hit.score:.2f}", f"{hit.margin:+.2f}")
        terminal.table(table)
