"""Arguments and options of the commands that list images of an index: ``search`` and ``suggest``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

IndexPath = Annotated[Path, typer.Argument(metavar="INDEX", help="A folder that 'refiner index' made.")]
IndexModel = Annotated[
    Path | None, typer.Option(help="The model, if it is not where it was when the index was made.")
]
ListFormat = Annotated[
    Literal["table", "jsonl"] | None,
    typer.Option("--format", help="Default: a table on a terminal, else JSON lines."),
]


def pick_list_format(requested: Literal["table", "jsonl"] | None) -> Literal["table", "jsonl"]:
    """What is printed: what was asked for, or what suits the reader."""
    return requested or ("table" if sys.stdout.isatty() else "jsonl")
