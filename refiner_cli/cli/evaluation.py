"""The work of ``refiner eval``: a model, several seeds of it, or a score file."""

from __future__ import annotations

import datetime as dt
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from refiner_cli.cli.common import (
    is_zero_shot,
    open_dataset,
    open_model,
    runtime_options,
    trained_seeds,
)
from refiner_cli.cli.console import new_table, terminal
from refiner_cli.cli.eval_request import EvalRequest
from refiner_cli.cli.metrics import (
    calibration_error_table,
    metrics_table,
    name_backbone,
    spread_cells,
    threshold_table,
    top_k_table,
    undefined_notes,
)
from refiner_cli.cli.training_data import kept_vectors
from refiner_cli.errors import UsageError
from refiner_cli.metric_names import METRIC_NAMES, format_metric
from refiner_cli.printable import quoted

if TYPE_CHECKING:
    from refiner_cli.core.model_io.checkpoint import ModelInfo
    from refiner_cli.core.models.base import Model
    from refiner_cli.data.benchmark import Benchmark
    from refiner_cli.evaluation.evaluate import EvalOptions
    from refiner_cli.evaluation.result import Result


def eval_options(request: EvalRequest) -> EvalOptions:
    from refiner_cli.evaluation.evaluate import EvalOptions

    return EvalOptions(request.protocol, request.top_k, request.bootstrap_samples)


def evaluate_file(request: EvalRequest, scores: Path, *, as_json: bool) -> None:
    """Evaluate a score file, show it, write what was asked for."""
    from refiner_cli.evaluation.evaluate import evaluate_score_file

    with terminal.progress("reading scores") as progress:
        result = evaluate_score_file(scores, eval_options(request), progress)
    show_evaluation(result, as_json=as_json)
    write_results(request, result, None, {"scores": str(scores)})


def evaluate_one(request: EvalRequest, model: Path, *, as_json: bool) -> None:
    """Evaluate a model, show it, write what was asked for.

    The numbers are shown first: whatever happens to a file must not cost them.
    """
    with ExitStack() as stack:
        result, info, loaded, benchmark = evaluate_path(request, model, stack)
        show_evaluation(result, as_json=as_json)
    store_feasibility(model, result, benchmark)
    facts = {"model": str(model), "method": info.method, "backbone": name_backbone(loaded),
             "dataset": f"{benchmark.name}, {benchmark.root}"}  # fmt: skip
    write_results(request, result, benchmark, facts)
    if request.save_scores:
        terminal.note(f"scores: {request.save_scores}")
    if not as_json:
        words = ("--states", "STATES.txt", "--objects", "OBJECTS.txt") if is_zero_shot(model) else ()
        terminal.next("refiner", "predict", model, "PHOTOS", *words, "-o", "rows.csv")


def evaluate_path(
    request: EvalRequest, model: Path, stack: ExitStack
) -> tuple[Result, ModelInfo, Model, Benchmark]:
    """The result of one model.

    Args:
        stack: where the file of --save-scores is completed when it ends.
    """
    from refiner_cli.evaluation.evaluate import evaluate_model
    from refiner_cli.evaluation.score_writer import write_scores

    loaded, info, benchmark = open_for_evaluation(model, request.dataset, request.device)
    runtime = runtime_options(loaded, request.precision, request.workers, request.batch)
    keep = None
    if request.save_scores:
        keep = stack.enter_context(write_scores(request.save_scores, len(benchmark.samples[request.split])))
    with terminal.progress("evaluating") as progress:
        result = evaluate_model(
            loaded, benchmark, request.split, request.worlds, runtime, eval_options(request),
            feasibility=request.feasibility, vectors=request.vectors, keep=keep, progress=progress,
        )  # fmt: skip
    return result, info, loaded, benchmark


def evaluate_seeds(request: EvalRequest, folder: Path, *, as_json: bool) -> None:
    """Every run of a folder of seeds, then mean and standard deviation."""
    from refiner_cli.evaluation.compare import mean_and_sd, spread_json
    from refiner_cli.training.seeds import SeedRuns

    if request.save_scores or request.per_image or request.report:
        one = SeedRuns.open(folder).run(SeedRuns.open(folder).best())
        raise UsageError(
            f"{folder} holds several seeds; --report, --per-image and --save-scores are for one run.",
            hint=f"Evaluate one of them: refiner eval {quoted(one)}",
        )
    results: dict[int, Result] = {}
    for seed, run in trained_seeds(SeedRuns.open(folder)).items():
        terminal.note(f"seed {seed}")
        with ExitStack() as stack:
            results[seed], _, _, benchmark = evaluate_path(request, run, stack)
        store_feasibility(run, results[seed], benchmark)
    spread = mean_and_sd(list(results.values()))
    if as_json:
        means = {world: {name: spread_json(pair) for name, pair in found.items()}
                 for world, found in spread.items()}  # fmt: skip
        runs = [{"seed": seed, **result.to_json()} for seed, result in results.items()]
        terminal.json({"schema": "refiner.eval-seeds/1", "folder": str(folder), "runs": runs, "seeds": means})
        return
    first = next(iter(results.values()))
    for world, found in spread.items():
        table = new_table(f"{first.dataset}, {first.split}, {world} world", "seed", *METRIC_NAMES)
        for seed, result in results.items():
            metrics = result.worlds[world].metrics
            table.add_row(str(seed), *(format_metric(getattr(metrics, name)) for name in METRIC_NAMES))
        for row in spread_cells(found):
            table.add_row(*row)
        terminal.table(table)
    terminal.next("refiner", "compare", folder, "ANOTHER")


def write_results(
    request: EvalRequest, result: Result, benchmark: Benchmark | None, facts: dict[str, str]
) -> None:
    """The files of --per-image and --report."""
    if request.per_image:
        from refiner_cli.evaluation.metrics.breakdown import write_per_image

        write_per_image(request.per_image, result.rows())
    if request.report:
        from refiner_cli.evaluation.report.page import write_report

        images = benchmark.images if benchmark else None
        write_report(request.report, result, images, facts | date_and_command())
        terminal.note(f"report: {request.report}")


def date_and_command() -> dict[str, str]:
    """When and with what a result is made: the local time, and the command as it was typed, for a shell."""
    date = f"{dt.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    return {"date": date, "command": shlex.join(["refiner", *sys.argv[1:]])}


def store_feasibility(model: Path, result: Result, benchmark: Benchmark) -> None:
    """Keep the fitted feasibility in the run; a run that cannot be written to is no error."""
    from refiner_cli.training.run_dir import is_run

    for world in result.worlds.values():
        if world.feasibility and is_run(model):
            try:
                world.feasibility.store(model, benchmark.fingerprint())
            except OSError as error:
                terminal.note(f"The feasibility was not stored in {model} ({error.strerror or error}).")


def open_for_evaluation(path: Path, dataset: str | None, device: str) -> tuple[Model, ModelInfo, Benchmark]:
    """The model and the benchmark it is evaluated on. A zero-shot model takes its labels from there."""
    if not is_zero_shot(path):
        model, info = open_model(path, device)
        kept = None if dataset else kept_vectors(path)
        return model, info, kept or open_dataset(dataset or info.dataset_path)
    if dataset is None:
        raise UsageError("A backbone that was not trained needs --dataset.")
    benchmark = open_dataset(dataset)
    model, info = open_model(path, device, benchmark)
    return model, info, benchmark


def show_evaluation(result: Result, *, as_json: bool) -> None:
    """Metrics with their intervals, and top-k."""
    if as_json:
        terminal.json(result.to_json())
        return
    title = f"{result.dataset}, {result.split}, {result.protocol} protocol; below: 95 % intervals"
    rows = {name: (world.metrics.to_json(), world.intervals) for name, world in result.worlds.items()}
    terminal.table(metrics_table(title, rows))
    for note in undefined_notes({name: world.metrics for name, world in result.worlds.items()}):
        terminal.note(note)
    terminal.table(top_k_table(result))
    show_confidence(result)
    for name, world in result.worlds.items():
        if choice := world.feasibility:
            chosen = f"feasibility {choice.mode} {choice.value:.4g} by {choice.source}"
            terminal.note(f"{name}: {chosen}, chosen on validation (AUC {choice.val_auc:.1f} there)")
        if ties := world.metrics.ties:
            terminal.note(
                f"{name}: several pairs share the best score of {ties} images; were the scores rounded?"
            )


def show_confidence(result: Result) -> None:
    """How far probabilities can be trusted, and the thresholds of verdicts."""
    for name, world in result.worlds.items():
        if measured := world.measured.confidence:
            terminal.table(calibration_error_table(f"Calibration error, {name} world, points", measured))
            if measured.confidence.promises:
                terminal.table(threshold_table(f"Verdicts, {name} world", result, measured))
