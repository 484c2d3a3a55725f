"""``refiner compare``: runs side by side, with paired intervals of their differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refiner_cli.cli.common import (
    Device,
    Precision,
    Workers,
    is_zero_shot,
    open_dataset,
    open_model,
    runtime_options,
)
from refiner_cli.cli.console import Json, new_table, terminal
from refiner_cli.cli.metrics import (
    BatchOption,
    BootstrapSamplesOption,
    DatasetOption,
    ProtocolOption,
    SplitOption,
    WorldOption,
    backbone_text,
    format_interval,
    metrics_table,
    undefined_notes,
    worlds_of,
)
from refiner_cli.errors import DatasetError, UsageError
from refiner_cli.metric_names import METRIC_NAMES, UNDEFINED, format_metric

if TYPE_CHECKING:
    from refiner_cli.core.model_io.checkpoint import ModelInfo
    from refiner_cli.evaluation.compare import Comparison, EvaluatedRun
    from refiner_cli.evaluation.metrics.bootstrap import Difference


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="Runs, exported models, or backbones by name (zero-shot)."),
    ],
    dataset: DatasetOption = None,
    split: SplitOption = "test",
    world: WorldOption = "both",
    protocol: ProtocolOption = "exact",
    bootstrap_samples: BootstrapSamplesOption = 1000,
    device: Device = "auto",
    precision: Precision = "auto",
    batch: BatchOption = 64,
    workers: Workers = -1,
    as_json: Json = False,
) -> None:
    """Compare runs on the same images: differences to the first, mean and deviation over seeds."""
    if len({run.resolve() for run in runs}) < max(len(runs), 2):
        raise UsageError("At least two different runs are needed for a comparison.")
    trained = describe_runs(runs)  # all of them, before any is evaluated
    benchmark = open_dataset(dataset or common_dataset(trained))
    from refiner_cli.evaluation.compare import EvaluatedRun, compare_runs
    from refiner_cli.evaluation.evaluate import EvalOptions, evaluate_model
    from refiner_cli.training.run_dir import Run, is_run

    options = EvalOptions(protocol, bootstrap_samples=bootstrap_samples)
    sides: list[EvaluatedRun] = []
    for run in runs:
        model, info = open_model(run, device, benchmark)
        runtime = runtime_options(model, precision, workers, batch)
        with terminal.progress(str(run)) as progress:
            result = evaluate_model(
                model, benchmark, split, worlds_of(world), runtime, options, progress=progress
            )
        config = Run.open(run).config if is_run(run) else None
        sides.append(EvaluatedRun(str(run), config, result, info.method, backbone_text(model)))
    comparison = compare_runs(sides)
    if as_json:
        terminal.json(comparison.to_json())
    else:
        show_comparison(comparison)


def describe_runs(runs: Sequence[Path]) -> dict[Path, ModelInfo]:
    """What the files of each trained model say. Raises ModelFileError if one is not a model."""
    from refiner_cli.core.model_io.checkpoint import model_info, read_config
    from refiner_cli.training.run_dir import model_folder

    return {run: model_info(read_config(model_folder(run))) for run in runs if not is_zero_shot(run)}


def common_dataset(trained: dict[Path, ModelInfo]) -> str:
    """Where the dataset is that all trained models come from.

    Raises:
        DatasetError: they were trained on different data.
        UsageError: there is no trained model.
    """
    if not trained:
        raise UsageError("Backbones that were not trained need --dataset.")
    (first, info), *others = trained.items()
    for run, other in others:
        if other.dataset_fingerprint != info.dataset_fingerprint:
            raise DatasetError(
                f"{run} was trained on other data than {first}.", hint="Name one dataset with --dataset."
            )
    return info.dataset_path


def show_comparison(comparison: Comparison) -> None:
    """The runs by number, and a table per world: every run, then the differences, then the seeds."""
    first = comparison.sides[0].result
    number = {side.name: str(i) for i, side in enumerate(comparison.sides, 1)}
    for side in comparison.sides:
        terminal.data(f"{number[side.name]}  {side.name}  ({side.method}, {side.backbone})")
    for world in first.worlds:
        of_world = {number[side.name]: side.result.worlds[world] for side in comparison.sides}
        title = f"{first.dataset}, {first.split}, {world} world; below: 95 % intervals"
        rows = {name: (result.metrics.to_json(), result.intervals) for name, result in of_world.items()}
        terminal.table(metrics_table(title, rows))
        for note in undefined_notes({world: first.worlds[world].metrics}):
            terminal.note(note)
        table = new_table("Differences on the same images; *: the interval excludes zero", "", *METRIC_NAMES)
        for run, worlds in comparison.against_first.items():
            cells = [worlds[world][name] for name in METRIC_NAMES]
            table.add_row(f"{number[run]}-1", *(format_difference(cell) for cell in cells))
            table.add_row("", *(format_interval(cell.interval) for cell in cells), style="dim")
        terminal.table(table)
        for group in comparison.seeds:
            members = ", ".join(number[run] for run in group.runs)
            table = new_table(f"Mean and standard deviation over the seeds of {members}", "", *METRIC_NAMES)
            values = [group.worlds[world][name] for name in METRIC_NAMES]
            for place, row in enumerate(("mean", "sd")):
                texts = [format_metric(pair[place]) if pair else UNDEFINED for pair in values]
                table.add_row(row, *texts)
            terminal.table(table)


def format_difference(difference: Difference) -> str:
    """With its sign, and a star where the interval excludes zero."""
    if difference.value is None:
        return UNDEFINED
    return f"{difference.value:+.1f}{'*' if difference.sure else ''}"
