"""``refiner search``: the images of an index that show a composition, a state, an object, or look alike."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Annotated

import typer

from refiner_cli.cli.common import Device, Precision
from refiner_cli.cli.console import Json, new_table, terminal
from refiner_cli.cli.index_inputs import IndexModel, IndexPath, ListFormat, OpenIndex, pick_list_format
from refiner_cli.cli.outputs import HTML_SUFFIXES, OutputFile, check_outputs
from refiner_cli.errors import UsageError
from refiner_cli.printable import json_text


def search(
    index: IndexPath,
    query: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUERY...",
            help="Terms: 'rusty bike', state:rusty, object:bike. A term that begins with - is excluded; then "
            "write -- before the query.",
        ),
    ] = None,
    model: IndexModel = None,
    like: Annotated[Path | None, typer.Option(help="Find images that look like this one.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many images to list.")] = 20,
    min_margin: Annotated[
        float | None, typer.Option(help="Leave out images with a lower margin; the same for any query.")
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out images with a lower score.")] = None,
    gallery: Annotated[Path | None, typer.Option(help="Write an .html page with the images found.")] = None,
    output_format: ListFormat = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Find the images of an index by a query. The best come first."""
    if bool(query) == bool(like):
        raise UsageError("Give either a QUERY or --like FILE.")
    chosen = pick_list_format(output_format)
    check_outputs([OutputFile("--gallery", gallery, HTML_SUFFIXES)])
    from refiner_cli.inference.query import encode_like, encode_query, parse_query, unknown_names
    from refiner_cli.inference.search import search_index

    opened = OpenIndex.open(index, model, device, precision)
    loaded, recogniser = opened.model, opened.recogniser()
    if like:
        asked = encode_like(recogniser, like)
    else:
        terms = parse_query(query or [], loaded.space)
        unknown = unknown_names(terms, loaded.space) if loaded.space.pairs else []
        if unknown:
            names = ", ".join(map(repr, unknown))
            terminal.note(
                f"not among the names the model was trained with, found by its language alone: {names}"
            )
        asked = encode_query(loaded, terms)
    with terminal.progress("searching") as progress:
        found = search_index(
            opened.index, asked, loaded.backbone.logit_scale, top=top,
            min_score=-inf if min_score is None else min_score,
            min_margin=-inf if min_margin is None else min_margin, progress=progress,
        )  # fmt: skip
    text = str(like) if like else " ".join(str(term) for term in asked.terms)
    if gallery:
        opened.write_gallery(gallery, f"Search: {text}", (hit.to_row() for hit in found))
    if as_json:
        terminal.json({"schema": "refiner.search/1", "query": text, "hits": [hit.to_json() for hit in found]})
    elif chosen == "jsonl":
        for hit in found:
            terminal.data(json_text(hit.to_json()))
    else:
        table = new_table(text, "image", "score", "margin")
        for hit in found:
            table.add_row(hit.path, f"{hit.score:.2f}", f"{hit.margin:+.2f}")
        terminal.table(table)
