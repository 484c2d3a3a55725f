"""``refiner eval``: closed and open world metrics of a model on a dataset, or of a file of scores."""

from __future__ import annotations

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
from refiner_cli.cli.console import Json, terminal
from refiner_cli.cli.metrics import (
    BatchSize,
    BootstrapSamples,
    Dataset,
    Feasibility,
    Protocol,
    Split,
    Worlds,
    metrics_table,
    parse_top_k,
    top_table,
    undefined_notes,
    worlds_of,
)
from refiner_cli.errors import UsageError

if TYPE_CHECKING:
    from refiner_cli.core.models.base import Model
    from refiner_cli.data.benchmark import Benchmark
    from refiner_cli.evaluation.result import Result


def evaluate(
    model: Annotated[
        Path | None, typer.Argument(help="A run, an exported model, or a backbone by name (zero-shot).")
    ] = None,
    dataset: Dataset = None,
    split: Split = "test",
    world: Worlds = "both",
    protocol: Protocol = "exact",
    feasibility: Feasibility = "none",
    feasibility_vectors: Annotated[
        Path | None, typer.Option(help="Word vectors (GloVe) for it.  [the model's text tower]")
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="Any method's scores (.npz), no MODEL.")] = None,
    topk: Annotated[str, typer.Option(metavar="K,K..", help="Ranks that are reported.")] = "1,3,5,10",
    bootstrap_samples: BootstrapSamples = 1000,
    per_image: Annotated[Path | None, typer.Option(help="Write a JSON line an image and world.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a self-contained HTML page.")] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch: BatchSize = 64,
    workers: Workers = -1,
    as_json: Json = False,
) -> None:
    """Evaluate a model or a file of scores; what there is to choose is chosen on validation."""
    if (model is None) == (scores is None):
        raise UsageError("Give either a MODEL or --scores FILE.npz.")
    if scores and (dataset or feasibility != "none"):
        raise UsageError("--dataset and --feasibility go with a MODEL, not with --scores.")
    if feasibility_vectors and feasibility == "none":
        raise UsageError("--feasibility-vectors needs --feasibility mask or soft.")
    if feasibility != "none" and world == "closed":
        raise UsageError("--feasibility is about the open world; --world closed leaves that out.")
    from refiner_cli.evaluation.evaluate import EvalOptions, evaluate_model, evaluate_score_file
    from refiner_cli.training.run_dir import is_run

    asked = EvalOptions(protocol, parse_top_k(topk), bootstrap_samples)
    benchmark: Benchmark | None = None
    if scores:
        with terminal.progress("reading scores") as progress:
            result = evaluate_score_file(scores, asked, progress)
    elif model:
        recogniser, benchmark = open_for_evaluation(model, dataset, device)
        setting = runtime_options(recogniser, precision, workers, batch)
        with terminal.progress("evaluating") as progress:
            result = evaluate_model(
                recogniser, benchmark, split, worlds_of(world), setting, asked,
                feasibility=feasibility, vectors=feasibility_vectors, progress=progress,
            )  # fmt: skip
        for found in result.worlds.values():
            if found.feasibility and is_run(model):
                found.feasibility.store(model, benchmark.fingerprint())
    if per_image:
        from refiner_cli.evaluation.metrics.breakdown import write_per_image

        write_per_image(per_image, result.rows())
    if report:
        from refiner_cli.evaluation.report.page import write_report

        write_report(report, result, benchmark.images if benchmark else None)
        terminal.note(f"report: {report}")
    if as_json:
        terminal.json(result.to_json())
    else:
        show_evaluation(result)


def open_for_evaluation(path: Path, dataset: str | None, device: str) -> tuple[Model, Benchmark]:
    """The model and the benchmark it is evaluated on. A zero-shot model takes its labels from there."""
    if not is_zero_shot(path):
        model, info = open_model(path, device)
        return model, open_dataset(dataset or info.dataset_path)
    if dataset is None:
        raise UsageError("A backbone that was not trained needs --dataset.")
    benchmark = open_dataset(dataset)
    model, _ = open_model(path, device, benchmark)
    return model, benchmark


def show_evaluation(result: Result) -> None:
    """Metrics with their intervals, and top-k."""
    title = f"{result.dataset}, {result.split}, {result.protocol} protocol; below: 95 % intervals"
    rows = {name: (found.metrics.to_json(), found.intervals) for name, found in result.worlds.items()}
    terminal.table(metrics_table(title, rows))
    for note in undefined_notes({name: found.metrics for name, found in result.worlds.items()}):
        terminal.note(note)
    terminal.table(top_table(result))
    for name, found in result.worlds.items():
        if choice := found.feasibility:
            chosen = f"feasibility {choice.mode} {choice.value:.4g} by {choice.source}"
            terminal.note(f"{name}: {chosen}, chosen on validation (AUC {choice.val_auc:.1f} there)")
        if found.metrics.ties:
            terminal.note(f"{name}: the best score of {found.metrics.ties} images is tied; was it rounded?")
