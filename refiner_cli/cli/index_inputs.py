"""What the commands share that list images of an index: ``search`` and ``suggest``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from refiner_cli.cli.common import open_model, runtime_options
from refiner_cli.cli.console import terminal

if TYPE_CHECKING:
    from refiner_cli.core.models.base import Model
    from refiner_cli.core.runtime.device import RuntimeOptions
    from refiner_cli.data.labels import LabelSpace
    from refiner_cli.inference.index import Index
    from refiner_cli.inference.recogniser import Recogniser

IndexPath = Annotated[Path, typer.Argument(metavar="INDEX", help="A folder that 'refiner index' made.")]
IndexModel = Annotated[
    Path | None, typer.Option(help="The model, if it is not where it was when the index was made.")
]
ListFormat = Annotated[
    Literal["table", "jsonl"] | None,
    typer.Option("--format", help="Format of the list.  [a table on a terminal, else JSON lines]"),
]


def pick_list_format(requested: Literal["table", "jsonl"] | None) -> Literal["table", "jsonl"]:
    """What is printed: what was asked for, or what suits the reader."""
    return requested or ("table" if sys.stdout.isatty() else "jsonl")


@dataclass(frozen=True)
class OpenIndex:
    """An index with the model that made it."""

    index: Index
    model: Model
    runtime: RuntimeOptions

    @classmethod
    def open(cls, folder: Path, model: Path | None, device: str, precision: str) -> OpenIndex:
        """Load both; ``model``: where the model is now, None: where it was.

        Raises:
            ModelFileError: the index or the model is missing or damaged.
        """
        from refiner_cli.inference.index import Index

        index = Index.open(folder)
        loaded, _ = open_model(model or Path(index.info.model["path"]), device)
        return cls(index, loaded, runtime_options(loaded, precision, workers=-1))

    def recogniser(self, space: LabelSpace | None = None) -> Recogniser:
        """With these candidates; None: those of the model. Raises UsageError for another model."""
        from refiner_cli.inference.indexing import check_made_by
        from refiner_cli.inference.recogniser import Recogniser

        made = Recogniser(self.model, space, self.runtime.precision)
        check_made_by(self.index, made)
        return made

    def write_gallery(self, page: Path, title: str, rows: Iterable[dict[str, Any]]) -> None:
        """Write an HTML page with images of the index, in the order of their rows."""
        from refiner_cli.inference.gallery import write_gallery
        from refiner_cli.inference.sources.places import find_again

        shown = write_gallery(
            page, title, rows, find_again(self.index.info.places).locate, workers=self.runtime.num_workers,
            is_ranking=True,
        )  # fmt: skip
        terminal.note(f"gallery {page} ({shown} images)")
