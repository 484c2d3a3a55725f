"""``refiner compare``: runs side by side, with paired intervals of their differences."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from refiner_cli.cli.common import Device, Precision, Workers, is_zero_shot, trained_seeds
from refiner_cli.cli.console import Json, new_table, terminal
from refiner_cli.cli.eval_request import EvalRequest
from refiner_cli.cli.metrics import (
    BatchOption,
    BootstrapSamplesOption,
    DatasetOption,
    FeasibilityOption,
    ProtocolOption,
    SplitOption,
    WorldOption,
    check_feasibility,
    format_interval,
    metrics_table,
    name_backbone,
    spread_cells,
    undefined_notes,
    worlds_of,
)
from refiner_cli.cli.training_data import learned_from_vectors
from refiner_cli.errors import DatasetError, UsageError
from refiner_cli.metric_names import METRIC_NAMES, UNDEFINED

if TYPE_CHECKING:
    from refiner_cli.core.model_io.checkpoint import ModelInfo
    from refiner_cli.evaluation.compare import Comparison, EvaluatedRun
    from refiner_cli.evaluation.metrics.bootstrap import Difference

SCORES = ".npz"


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN...",
            help="Runs, folders of seeds, exported models, backbones by name, or score files (.npz).",
        ),
    ],
    dataset: DatasetOption = None,
    split: SplitOption = "test",
    world: WorldOption = "both",
    protocol: ProtocolOption = "exact",
    feasibility: FeasibilityOption = "none",
    bootstrap_samples: BootstrapSamplesOption = 1000,
    output_format: Annotated[
        Literal["table", "markdown", "latex", "csv"],
        typer.Option("--format", help="For the terminal, a page, a paper (booktabs) or a sheet."),
    ] = "table",
    device: Device = "auto",
    precision: Precision = "auto",
    batch: BatchOption = 64,
    workers: Workers = -1,
    as_json: Json = False,
) -> None:
    """Compare runs on the same images. Differences are to the first; seeds give mean and deviation."""
    runs = [run for given in runs for run in runs_of(given)]
    if len({run.resolve() for run in runs}) < max(len(runs), 2):
        raise UsageError("At least two different runs are needed for a comparison.")
    check_feasibility(feasibility, world)
    models = [run for run in runs if not is_score_file(run)]
    if not models and (dataset or feasibility != "none"):
        raise UsageError(
            "--dataset and --feasibility need a model and cannot be used with score files alone."
        )
    if models and len(models) < len(runs) and world == "both":
        raise UsageError("A score file holds one world.", hint="Add --world closed or --world open.")
    trained = describe_runs(models)  # all of them, before any is evaluated
    check_score_files([run for run in runs if is_score_file(run)])
    place = dataset or (common_dataset(trained) if models else None)
    request = EvalRequest(
        place, split, tuple(worlds_of(world)), protocol, (1,), bootstrap_samples, feasibility, None, device,
        precision, batch, workers,
    )  # fmt: skip
    from refiner_cli.cli.evaluation import date_and_command
    from refiner_cli.evaluation.compare import compare_runs
    from refiner_cli.evaluation.comparison_text import comparison_text

    own = set() if dataset else {run for run in trained if learned_from_vectors(run)}
    requests = [replace(request, dataset=None) if run in own else request for run in runs]
    sides = [evaluate_side(one, run, mixed=bool(models)) for one, run in zip(requests, runs, strict=True)]
    comparison = compare_runs(sides)
    for note in comparison.notes:
        terminal.note(note)
    made = date_and_command()
    origin = f"{made['date']}: {made['command']}"
    if as_json:
        terminal.json(comparison.to_json() | made)
    elif output_format == "table":
        show_comparison(comparison)
        terminal.data(origin)
    else:
        terminal.data(comparison_text(comparison, output_format, origin).rstrip("\n"))


def is_score_file(run: Path) -> bool:
    """Whether a side of a comparison is a file of scores."""
    return run.suffix.lower() == SCORES


def runs_of(given: Path) -> list[Path]:
    """What one argument stands for: the finished runs of a folder of seeds, or itself."""
    from refiner_cli.training.seeds import SeedRuns, is_seeds

    return list(trained_seeds(SeedRuns.open(given)).values()) if is_seeds(given) else [given]


def check_score_files(files: Sequence[Path]) -> None:
    """Raise ScoresError for a file whose arrays do not fit together."""
    from refiner_cli.evaluation.score_files import open_scores

    for file in files:
        open_scores(file)


def evaluate_side(request: EvalRequest, run: Path, *, mixed: bool) -> EvaluatedRun:
    """One side of the comparison; ``mixed``: score files stand beside models, in the same world."""
    from refiner_cli.cli.evaluation import eval_options, evaluate_path
    from refiner_cli.evaluation.compare import EvaluatedRun
    from refiner_cli.evaluation.evaluate import SCORES_WORLD, evaluate_score_file
    from refiner_cli.training.run_dir import Run, is_run

    if is_score_file(run):
        name = request.worlds[0] if mixed else SCORES_WORLD
        with terminal.progress(str(run)) as progress:
            result = evaluate_score_file(run, eval_options(request), progress, world_name=name)
        return EvaluatedRun(str(run), None, result, "scores", "")
    with ExitStack() as stack:
        result, info, model, _ = evaluate_path(request, run, stack)
    backbone = name_backbone(model)
    if not is_run(run):
        return EvaluatedRun(str(run), None, result, info.method, backbone)
    opened = Run.open(run)
    data = (opened.dataset.fingerprint, *opened.skipped)
    return EvaluatedRun(str(run), opened.config, result, info.method, backbone, data)


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
        what = ", ".join(filter(None, (side.method, side.backbone)))
        terminal.data(f"{number[side.name]}  {side.name}  ({what})")
    for world in first.worlds:
        of_world = {number[side.name]: side.result.worlds[world] for side in comparison.sides}
        title = f"{first.dataset}, {first.split}, {world} world; below: 95 % intervals"
        if world == "given":  # by a file of scores
            title = "scores; below: 95 % intervals"
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
            for row in spread_cells(group.worlds[world]):
                table.add_row(*row)
            terminal.table(table)


def format_difference(difference: Difference) -> str:
    """With its sign, and a star where the interval excludes zero."""
    if difference.value is None:
        return UNDEFINED
    return f"{difference.value:+.1f}{'*' if difference.sure else ''}"
