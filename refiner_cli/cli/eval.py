"""``refiner eval``: closed- and open-world metrics of a model on a dataset, or of a score file."""

from __future__ import annotations

import datetime as dt
import shlex
import sys
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
    BatchOption,
    BootstrapSamplesOption,
    DatasetOption,
    FeasibilityOption,
    ProtocolOption,
    SplitOption,
    WorldOption,
    backbone_text,
    metrics_table,
    parse_top_k,
    top_k_table,
    undefined_notes,
    worlds_of,
)
from refiner_cli.cli.outputs import OutputFile, check_outputs
from refiner_cli.errors import UsageError

if TYPE_CHECKING:
    from refiner_cli.core.model_io.checkpoint import ModelInfo
    from refiner_cli.core.models.base import Model
    from refiner_cli.data.benchmark import Benchmark
    from refiner_cli.evaluation.result import Result


def evaluate(
    model: Annotated[
        Path | None, typer.Argument(help="A run, an exported model, or a backbone by name (zero-shot).")
    ] = None,
    dataset: DatasetOption = None,
    split: SplitOption = "test",
    world: WorldOption = "both",
    protocol: ProtocolOption = "exact",
    feasibility: FeasibilityOption = "none",
    feasibility_vectors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="GloVe file for --feasibility.  [the model's text tower]"),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Scores (.npz) of any method, instead of a MODEL.")
    ] = None,
    topk: Annotated[str, typer.Option(metavar="K,K..", help="Ranks to report.")] = "1,3,5,10",
    bootstrap_samples: BootstrapSamplesOption = 1000,
    per_image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a JSON line per image and world (.jsonl).")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a self-contained HTML page.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch: BatchOption = 64,
    workers: Workers = -1,
    as_json: Json = False,
) -> None:
    """Evaluate a model or a score file; all hyper-parameters are selected on the validation split."""
    if (model is None) == (scores is None):
        raise UsageError("Give either a MODEL or --scores FILE.npz.")
    if scores and (dataset or feasibility != "none"):
        raise UsageError("--dataset and --feasibility need a MODEL and cannot be used with --scores.")
    if feasibility_vectors and feasibility == "none":
        raise UsageError("--feasibility-vectors needs --feasibility mask or soft.")
    if feasibility != "none" and world == "closed":
        raise UsageError("--feasibility applies to the open world only.", hint="Use --world open or both.")
    check_outputs(
        [
            OutputFile("--report", report, (".html", ".htm")),
            OutputFile("--per-image", per_image, (".jsonl",)),
        ],
        [path for path in (model, scores, feasibility_vectors) if path],
    )
    from refiner_cli.evaluation.evaluate import EvalOptions, evaluate_model, evaluate_score_file

    options = EvalOptions(protocol, parse_top_k(topk), bootstrap_samples)
    benchmark: Benchmark | None = None
    facts: dict[str, str] = {}
    if scores:
        facts = {"scores": str(scores)}
        with terminal.progress("reading scores") as progress:
            result = evaluate_score_file(scores, options, progress)
    elif model:
        recogniser, info, benchmark = open_for_evaluation(model, dataset, device)
        facts = describe_inputs(model, recogniser, info, benchmark)
        runtime = runtime_options(recogniser, precision, workers, batch)
        with terminal.progress("evaluating") as progress:
            result = evaluate_model(
                recogniser, benchmark, split, worlds_of(world), runtime, options,
                feasibility=feasibility, vectors=feasibility_vectors, progress=progress,
            )  # fmt: skip
    # The numbers come first: whatever happens to a file must not cost them.
    if as_json:
        terminal.json(result.to_json())
    else:
        show_evaluation(result)
    if model and benchmark:
        store_feasibility(model, result, benchmark)
    if per_image:
        from refiner_cli.evaluation.metrics.breakdown import write_per_image

        write_per_image(per_image, result.rows())
    if report:
        from refiner_cli.evaluation.report.page import write_report

        facts |= {"date": f"{dt.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}", "command": command_line()}
        write_report(report, result, benchmark.images if benchmark else None, facts)
        terminal.note(f"report: {report}")
    if model and not as_json:
        terminal.next(
            "refiner", "predict", model, "PHOTOS", "-o", "rows.csv", why="to recognise your own photos"
        )


def describe_inputs(path: Path, model: Model, info: ModelInfo, benchmark: Benchmark) -> dict[str, str]:
    """What the report says about the model and the data."""
    return {
        "model": str(path),
        "method": info.method,
        "backbone": backbone_text(model),
        "dataset": f"{benchmark.name}, {benchmark.root}",
    }


def command_line() -> str:
    """The command as it was typed, quoted for a shell."""
    return shlex.join(["refiner", *sys.argv[1:]])


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
        return model, info, open_dataset(dataset or info.dataset_path)
    if dataset is None:
        raise UsageError("A backbone that was not trained needs --dataset.")
    benchmark = open_dataset(dataset)
    model, info = open_model(path, device, benchmark)
    return model, info, benchmark


def show_evaluation(result: Result) -> None:
    """Metrics with their intervals, and top-k."""
    title = f"{result.dataset}, {result.split}, {result.protocol} protocol; below: 95 % intervals"
    rows = {name: (world.metrics.to_json(), world.intervals) for name, world in result.worlds.items()}
    terminal.table(metrics_table(title, rows))
    for note in undefined_notes({name: world.metrics for name, world in result.worlds.items()}):
        terminal.note(note)
    terminal.table(top_k_table(result))
    for name, world in result.worlds.items():
        if choice := world.feasibility:
            chosen = f"feasibility {choice.mode} {choice.value:.4g} by {choice.source}"
            terminal.note(f"{name}: {chosen}, chosen on validation (AUC {choice.val_auc:.1f} there)")
        if ties := world.metrics.ties:
            terminal.note(
                f"{name}: several pairs share the best score of {ties} images; were the scores rounded?"
            )
