"""``refiner eval``: closed- and open-world metrics of a model on a dataset, or of a score file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refiner_cli.cli.common import Device, Precision, Workers
from refiner_cli.cli.console import Json
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
    parse_top_k,
    worlds_of,
)
from refiner_cli.cli.outputs import HTML_SUFFIXES, OutputFile, check_outputs
from refiner_cli.errors import UsageError


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
    save_scores: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the scores of one --world as .npz, as --scores reads them."),
    ] = None,
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
    """Evaluate a model or a score file. All hyper-parameters are chosen on the validation split.

    A folder of several seeds is evaluated seed by seed, with mean and standard deviation.
    """
    if (model is None) == (scores is None):
        raise UsageError("Give either a MODEL or --scores FILE.npz.")
    if scores and (dataset or feasibility != "none"):
        raise UsageError("--dataset and --feasibility need a MODEL and cannot be used with --scores.")
    if feasibility_vectors and feasibility == "none":
        raise UsageError("--feasibility-vectors needs --feasibility mask or soft.")
    check_feasibility(feasibility, world)
    if save_scores and (scores or world == "both"):
        raise UsageError("--save-scores keeps the scores of a MODEL in one world.", hint="Add --world closed "
                         "or --world open.")  # fmt: skip
    check_outputs(
        [
            OutputFile("--report", report, HTML_SUFFIXES),
            OutputFile("--per-image", per_image, (".jsonl",)),
            OutputFile("--save-scores", save_scores, (".npz",)),
        ],
        [path for path in (model, scores, feasibility_vectors) if path],
    )
    request = EvalRequest(
        dataset=dataset,
        split=split,
        worlds=tuple(worlds_of(world)),
        protocol=protocol,
        top_k=parse_top_k(topk),
        bootstrap_samples=bootstrap_samples,
        feasibility=feasibility,
        vectors=feasibility_vectors,
        save_scores=save_scores,
        per_image=per_image,
        report=report,
        device=device,
        precision=precision,
        batch=batch,
        workers=workers,
    )
    from refiner_cli.cli.evaluation import evaluate_file, evaluate_one, evaluate_seeds
    from refiner_cli.training.seeds import is_seeds

    if scores:
        evaluate_file(request, scores, as_json=as_json)
    elif model and is_seeds(model):
        evaluate_seeds(request, model, as_json=as_json)
    elif model:
        evaluate_one(request, model, as_json=as_json)
