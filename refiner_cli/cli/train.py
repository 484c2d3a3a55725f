"""``refiner train``: learn a dataset's compositions on a frozen backbone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refiner_cli.cli.console import Json, terminal
from refiner_cli.errors import UsageError

if TYPE_CHECKING:
    from refiner_cli.config import Config
    from refiner_cli.settings import Layer

Dataset = Annotated[
    str | None,
    typer.Argument(metavar="DATASET", help="A catalogue name (see 'refiner download --list') or a folder."),
]


def train(
    dataset: Dataset = None,
    method: Annotated[
        str | None, typer.Option(help="refiner, or a baseline: clip, coop, csp, troika.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="An open_clip ViT model, or tiny, which comes with refiner.  [ViT-L-14]"),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(help="An open_clip tag, a weights file, or none for random weights.  [openai]"),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with settings.")] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, e.g. train.lr=1e-4; repeatable."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides every random choice.  [0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.  [auto]")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.  [auto]")] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory.  [runs/DATASET-METHOD-TIME]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    seeds: Annotated[
        int, typer.Option(min=1, help="Train with so many seeds, from --seed on; mean and deviation.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Train on a dataset; the best epoch and all inference weights come from its validation split.

    Ctrl-C and SIGTERM finish the step and save it. Under torchrun the processes share the work.
    """
    flags = {"method": method, "backbone": backbone, "pretrained": pretrained, "seed": seed, "device": device,
             "precision": precision}  # fmt: skip
    if resume and out is None:
        raise UsageError("--resume needs the run: --out RUN.")
    if not resume and dataset is None:
        raise UsageError("A dataset is missing.", hint="Try 'refiner train demo'.")
    chosen = configure(dataset, config, assign or [], flags) if dataset and not resume else None
    from refiner_cli.cli.training import TrainRequest, run_training

    code = run_training(TrainRequest(dataset or "", chosen, out, seeds), as_json=as_json)
    if code:
        raise typer.Exit(code)


def configure(dataset: str, file: Path | None, assignments: list[str], flags: dict[str, Any]) -> Config:
    """Recipe of the dataset, file, environment, flags: the later wins."""
    from refiner_cli.recipes import recipe_for
    from refiner_cli.settings import from_assignments, from_environment, from_file, resolve

    layers: list[Layer] = []
    recipe = recipe_for(dataset)
    if recipe:
        terminal.note(f"settings of the recipe {recipe[0]}")
    if file:
        layers.append(from_file(file))
    layers.append(from_environment(os.environ))
    layers.append(("command line", {name: value for name, value in flags.items() if value is not None}))
    layers.append(from_assignments(assignments))
    return resolve(layers, recipe)
