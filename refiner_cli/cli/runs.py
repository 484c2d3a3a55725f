"""``refiner runs``: the trainings in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refiner_cli.cli.console import Json, new_table, terminal
from refiner_cli.errors import InputError
from refiner_cli.metric_names import HEADLINE_METRICS, UNDEFINED, format_metric


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to look, some folders deep.")] = Path(
        "runs"
    ),
    as_json: Json = False,
) -> None:
    """List trainings and their state. Their best metrics on validation are shown, too."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", hint="Name the folder that holds your runs.")
    from refiner_cli.training.run_list import FINISHED, NOT_BEGUN, find_runs

    found = list(find_runs(folder))
    if as_json:
        terminal.json({"schema": "refiner.runs/1", "runs": [run.to_json() for run in found]})
        return
    if not found:
        terminal.note(f"There is no run in {folder}; 'refiner train' makes one.")
        return
    table = new_table(
        "Best on validation", "run", "method", "backbone", "dataset", "seed", *HEADLINE_METRICS, "state"
    )
    for column in table.columns[1:4]:
        column.justify = "left"
    for run in found:
        values = [format_metric(run.val.get(name)) if run.val else UNDEFINED for name in HEADLINE_METRICS]
        seed = UNDEFINED if run.seed is None else str(run.seed)
        state = run.state if run.state in {FINISHED, NOT_BEGUN} else f"{run.state}, step {run.step}"
        table.add_row(run.folder, run.method, run.backbone, run.dataset, seed, *values, state)
    terminal.table(table)
