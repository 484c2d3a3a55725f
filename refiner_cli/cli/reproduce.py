"""``refiner reproduce``: a published benchmark from nothing to a table beside the published figures."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from refiner_cli.cli.common import Workers
from refiner_cli.cli.console import Json
from refiner_cli.cli.metrics import FeasibilityOption
from refiner_cli.cli.outputs import check_output_folder


class ReproduceBenchmark(StrEnum):
    MIT_STATES = "mit-states"
    UT_ZAPPOS = "ut-zappos"
    C_GQA = "c-gqa"


class SimilarityKind(StrEnum):
    GLOVE = "glove"
    TEXT = "text"


ALL_METHODS = ("clip", "coop", "csp", "troika", "refiner")


def reproduce(
    benchmark: Annotated[ReproduceBenchmark, typer.Argument(help="The benchmark.")],
    method: Annotated[
        list[str] | None, typer.Option(help="clip, coop, csp, troika, refiner, ...; repeatable.  [all]")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Trainings per method.")] = 3,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Runs and results.  [reproduced/BENCHMARK]")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where datasets are kept.  [REFINER_HOME/datasets]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show downloads, time and memory; fetch and train nothing.")
    ] = False,
    feasibility: FeasibilityOption = "mask",
    similarity: Annotated[
        SimilarityKind,
        typer.Option(help="What feasibility is computed from: glove, as published, or the text tower."),
    ] = SimilarityKind.GLOVE,
    backbone: Annotated[str | None, typer.Option(help="Another backbone than the recipes'.")] = None,
    pretrained: Annotated[str | None, typer.Option(help="Its weights, as in 'refiner train'.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.  [auto]")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.  [auto]")] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting for every method; repeatable."),
    ] = None,
    workers: Workers = -1,
    as_json: Json = False,
) -> None:
    """Train and evaluate a benchmark's methods.

    What is missing is downloaded and verified first. The same command resumes.

    Each method starts from its recipe with the published settings. Every choice is made on validation; test
    is measured in the closed and the open world, by the published protocol and the exact one. Results go to
    results.json and results.md in --out.
    """
    names = [*dict.fromkeys(method or ["all"])]
    if "all" in names:
        names = [*dict.fromkeys([*ALL_METHODS, *(name for name in names if name != "all")])]
    if feasibility == "none":
        similarity = SimilarityKind.TEXT
    from refiner_cli.cli.reproducing import ReproduceRequest, run_reproduction

    flags = {"backbone": backbone, "pretrained": pretrained, "device": device, "precision": precision,
             "workers": workers if workers >= 0 else None}  # fmt: skip
    request = ReproduceRequest(
        benchmark=benchmark.value,
        methods=tuple(names),
        seeds=seeds,
        out=out or Path("reproduced") / benchmark.value,
        data=data,
        feasibility=feasibility,
        glove=similarity is SimilarityKind.GLOVE,
        flags=flags,
        assignments=tuple(assign or ()),
        workers=workers,
    )
    check_output_folder("--out", request.out)
    code = run_reproduction(request, dry_run=dry_run, as_json=as_json)
    if code:
        raise typer.Exit(code)
