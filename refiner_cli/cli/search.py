"""``refiner search``: the images of an index that show a composition, a state, an object, or look alike."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Annotated

import typer

from refiner_cli.cli.common import Device, Precision, runtime_options
from refiner_cli.cli.console import Json, new_table, terminal
from refiner_cli.cli.index_inputs import IndexModel, IndexPath, ListFormat, pick_list_format
from refiner_cli.cli.outputs import OutputFile, check_outputs
from refiner_cli.cli.preparation import open_index_model
from refiner_cli.errors import UsageError


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
    """List the images of an index that fit a query best, one JSON line per image."""
    if bool(query) == bool(like):
        raise UsageError("Give either a QUERY or --like FILE.")
    chosen = pick_list_format(output_format)
    check_outputs([OutputFile("--gallery", gallery, (".html", ".htm"))])
    from refiner_cli.inference.gallery import write_gallery
    from refiner_cli.inference.index import Index
    from refiner_cli.inference.indexing import check_made_by
    from refiner_cli.inference.query import encode_like, encode_query, parse_query, unknown_names
    from refiner_cli.inference.recogniser import Recogniser
    from refiner_cli.inference.search import search_index
    from refiner_cli.inference.sources.places import find_again

    opened = Index.open(index)
    loaded = open_index_model(opened, model, device)
    runtime = runtime_options(loaded, precision, workers=-1, batch=1)
    recogniser = Recogniser(loaded, precision=runtime.precision)
    check_made_by(opened, recogniser)
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
            opened, asked, loaded.backbone.logit_scale, top=top,
            min_score=-inf if min_score is None else min_score,
            min_margin=-inf if min_margin is None else min_margin, progress=progress,
        )  # fmt: skip
    text = str(like) if like else " ".join(str(term) for term in asked.terms)
    if gallery:
        write_gallery(
            gallery, f"Search: {text}", (hit.to_row() for hit in found),
            find_again(opened.info.places).locate,
            workers=runtime.num_workers, is_ranking=True,
        )  # fmt: skip
        terminal.note(f"gallery {gallery} ({len(found)} images)")
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
