"""``refiner compare``: runs side by side, with paired intervals of their differences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refiner_cli.cli.common import Device, Precision, Workers, open_dataset, open_model, runtime_options
from refiner_cli.cli.console import Json, new_table, terminal
from refiner_cli.cli.metrics import (
    BatchSize,
    BootstrapSamples,
    Dataset,
    Protocol,
    Split,
    Worlds,
    format_interval,
    metrics_table,
    worlds_of,
)
from refiner_cli.errors import DatasetError, UsageError
from refiner_cli.metric_names import METRIC_NAMES, UNDEFINED, format_metric

if TYPE_CHECKING:
    from refiner_cli.evaluation.compare import Comparison, EvaluatedRun
    from refiner_cli.evaluation.metrics.bootstrap import Difference


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Runs or exported models.")],
    dataset: Dataset = None,
    split: Split = "test",
    world: Worlds = "both",
    protocol: Protocol = "exact",
    bootstrap_samples: BootstrapSamples = 1000,
    device: Device = "auto",
    precision: Precision = "auto",
    batch: BatchSize = 64,
    workers: Workers = -1,
    as_json: Json = False,
) -> None:
    """Compare runs on the same images: differences to the first, and the spread over seeds."""
    if len({run.resolve() for run in runs}) < max(len(runs), 2):
        raise UsageError("At least two different runs are needed for a comparison.")
    from refiner_cli.evaluation.compare import EvaluatedRun
    from refiner_cli.evaluation.compare import compare as put_together
    from refiner_cli.evaluation.evaluate import EvalOptions, evaluate_model
    from refiner_cli.training.run_dir import Run, is_run

    sides: list[EvaluatedRun] = []
    trained_on = ""
    for run in runs:
        model, info = open_model(run, device)
        if trained_on not in {"", info.dataset_fingerprint} and dataset is None:
            raise DatasetError(
                f"{run} was trained on other data than {runs[0]}.", hint="Name one dataset with --dataset."
            )
        trained_on = info.dataset_fingerprint
        benchmark = open_dataset(dataset or info.dataset_path)
        setting = runtime_options(model, precision, workers, batch)
        with terminal.progress(str(run)) as progress:
            result = evaluate_model(
                model, benchmark, split, worlds_of(world), setting,
                EvalOptions(protocol, bootstrap_samples=bootstrap_samples), progress=progress,
            )  # fmt: skip
        sides.append(EvaluatedRun(str(run), Run.open(run).config if is_run(run) else None, result))
    found = put_together(sides)
    if as_json:
        terminal.json(found.to_json())
    else:
        show_comparison(found)


def show_comparison(found: Comparison) -> None:
    """The runs by number, and a table a world: every run, then the differences, then the seeds."""
    first = found.sides[0]
    number = {side.name: str(i) for i, side in enumerate(found.sides, 1)}
    for name, i in number.items():
        terminal.data(f"{i}  {name}")
    for world in first.result.worlds:
        of_world = {number[side.name]: side.result.worlds[world] for side in found.sides}
        title = f"{first.result.dataset}, {first.result.split}, {world} world; below: 95 % intervals"
        rows = {name: (result.metrics.to_json(), result.intervals) for name, result in of_world.items()}
        terminal.table(metrics_table(title, rows))
        table = new_table("Differences on the same images; * leaves zero out", "", *METRIC_NAMES)
        for run, worlds in found.against_first.items():
            cells = [worlds[world][column] for column in METRIC_NAMES]
            table.add_row(f"{number[run]}-1", *(format_difference(cell) for cell in cells))
            spans = (format_interval(cell.interval) for cell in cells)
            table.add_row("", *spans, style="dim")
        terminal.table(table)
        for group in found.seeds:
            runs = ", ".join(number[run] for run in group.runs)
            table = new_table(f"Mean and standard deviation over the seeds of {runs}", "", *METRIC_NAMES)
            means = [group.worlds[world][column] for column in METRIC_NAMES]
            table.add_row("mean", *(format_metric(pair[0]) if pair else UNDEFINED for pair in means))
            table.add_row("sd", *(format_metric(pair[1]) if pair else UNDEFINED for pair in means))
            terminal.table(table)


def format_difference(difference: Difference) -> str:
    """With its sign, and a star where the interval excludes zero."""
    if difference.value is None:
        return UNDEFINED
    return f"{difference.value:+.1f}{'*' if difference.sure else ''}"
