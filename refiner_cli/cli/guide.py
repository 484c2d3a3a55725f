"""``refiner guide``: the user's guide in the terminal."""

from __future__ import annotations

import difflib
from typing import Annotated

import typer

from refiner_cli.cli.console import Json, new_table, terminal
from refiner_cli.errors import UsageError
from refiner_cli.guide import PAGES, page_text, page_title


def page_names(incomplete: str) -> list[str]:
    """Completion of PAGE."""
    return [name for name in PAGES if name.startswith(incomplete)]


def guide(
    page: Annotated[
        str | None, typer.Argument(metavar="[PAGE]", help="The page to show.", autocompletion=page_names)
    ] = None,
    as_json: Json = False,
) -> None:
    """Read the guide in the terminal. Without PAGE its pages are listed; piped, a page is Markdown."""
    if page is None:
        titles = {name: page_title(name) for name in PAGES}
        if as_json:
            terminal.json({"schema": "refiner.guide/1", "pages": titles})
            return
        table = new_table("Pages of the guide; read one with: refiner guide PAGE", "page", "about")
        table.columns[1].justify = "left"
        for name, title in titles.items():
            table.add_row(name, title)
        terminal.table(table)
        return
    if page not in PAGES:
        near = difflib.get_close_matches(page, PAGES, 1, cutoff=0.4)
        hint = f"Did you mean '{near[0]}'?" if near else f"The pages are {', '.join(PAGES)}."
        raise UsageError(f"The guide has no page '{page}'.", hint=hint)
    text = page_text(page)
    if as_json:
        terminal.json({"schema": "refiner.guide/1", "page": page, "text": text})
    else:
        terminal.markdown(text)
