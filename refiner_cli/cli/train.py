"""``refiner train``: learn a dataset's compositions on a frozen backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refiner_cli.cli.configure import configure
from refiner_cli.cli.console import Json, terminal
from refiner_cli.errors import UsageError

DatasetName = Annotated[
    str | None,
    typer.Argument(metavar="DATASET", help="A catalogue name (see 'refiner download --list') or a folder."),
]


def train(
    dataset: DatasetName = None,
    method: Annotated[
        str | None, typer.Option(help="refiner, or a baseline: clip, coop, csp, troika, troika-shared.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="An open_clip ViT model, or tiny, which comes with refiner.  [ViT-L-14]"),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(help="An open_clip tag, a weights file, TAG=FILE, or none (random weights).  [openai]"),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Start from a trained model: a run, an exported model or hf-hub:OWNER/NAME. What it learned "
            "is taken over where it fits, states and objects by name.",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="A TOML file with settings, or a recipe's name ('refiner config')."
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images.  [train.epochs]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.  [train.batch_size]")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.  [train.lr]")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Image-decoding processes.  [train.num_workers]")
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, e.g. train.lr=1e-4; repeatable."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Determines every random choice.  [0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.  [auto]")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.  [auto]")] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory.  [runs/DATASET-METHOD-TIME]")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in --out; DATASET only if the dataset was moved.")
    ] = False,
    seeds: Annotated[
        int,
        typer.Option(
            min=1,
            max=1000,
            help="Train this many runs with consecutive seeds; report mean and standard deviation.",
        ),
    ] = 1,
    as_json: Json = False,
) -> None:
    """Train on a dataset; the best epoch and all inference weights are selected on its validation split.

    Ctrl-C and SIGTERM finish the step and save it. Under torchrun the processes share the work.
    """
    flags = {"method": method, "backbone": backbone, "pretrained": pretrained, "init": init, "seed": seed,
             "device": device, "precision": precision, "epochs": epochs, "batch-size": batch_size, "lr": lr,
             "workers": workers}  # fmt: skip
    if resume and out is None:
        raise UsageError("--resume needs the run: --out RUN.")
    if not resume and dataset is None:
        raise UsageError("A dataset is missing.", hint="Try 'refiner train demo'.")
    if resume:
        ignored = [f"--{name}" for name, value in flags.items() if value is not None]
        ignored += [f"--{name}" for name, value in (("config", config), ("set", assign)) if value]
        if ignored:
            terminal.note(f"A resumed run keeps its settings: {', '.join(ignored)} ignored.")
    settings = configure(dataset, config, assign or [], flags)[0] if dataset and not resume else None
    from refiner_cli.cli.training import TrainRequest, run_training

    code = run_training(TrainRequest(dataset or "", settings, out, 1 if resume else seeds), as_json=as_json)
    if code:
        raise typer.Exit(code)
