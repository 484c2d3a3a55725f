"""``refiner merge``: the parts of a folder as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refiner_cli.cli.console import Json, terminal
from refiner_cli.cli.outputs import check_output_file


def merge(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What 'refiner predict ... -o DIR/' has written.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Output file: .jsonl, .csv or .parquet.")],
    wide: Annotated[
        bool, typer.Option("--wide", help="CSV with every column, for all predictions.  [the best three]")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the parts of a folder as one file. The order of its rows is always the same."""
    from refiner_cli.inference.formats import format_of
    from refiner_cli.inference.parts.plan import read_plan
    from refiner_cli.inference.parts.work import merge_parts
    from refiner_cli.inference.row_files import refuse_predictions

    format_of(out)
    check_output_file("-o", out)
    refuse_predictions(out)
    plan = read_plan(folder)
    made = merge_parts(plan, out, wide=wide)
    if as_json:
        terminal.json({"schema": "refiner.merge/1", "images": made.images, "errors": made.errors,
                       "units": plan.units, "out": str(out)})  # fmt: skip
    else:
        terminal.note(f"{made.images:,} rows of {plan.units} parts in {out}, {made.errors:,} of them errors")
