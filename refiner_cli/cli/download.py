"""``refiner download``: get datasets."""

from __future__ import annotations

from typing import Annotated

import typer

from refiner_cli.cli.common import open_dataset
from refiner_cli.cli.console import Json, terminal
from refiner_cli.errors import UsageError


def download(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Catalogue names.")],
    as_json: Json = False,
) -> None:
    """Get datasets."""
    for name in names:
        if name != "demo":
            raise UsageError(f"The catalogue has no dataset {name!r}.", hint="It has demo.")
        benchmark = open_dataset(name)
        if as_json:
            terminal.json({"schema": "refiner.download/1", "name": name, "path": str(benchmark.root)})
        else:
            terminal.data(str(benchmark.root))
