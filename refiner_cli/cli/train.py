"""``refiner train``: learn a dataset's compositions on a frozen backbone."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from refiner_cli.cli.configure import asked_settings, configure
from refiner_cli.cli.console import Json, terminal
from refiner_cli.cli.outputs import check_output_folder
from refiner_cli.cli.train_request import TrainRequest, resumption
from refiner_cli.cli.training_data import index_settings
from refiner_cli.errors import UsageError
from refiner_cli.printable import quoted

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
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Labels of an index, which is then the DATASET: CSV, TSV or JSON lines with path, state, "
            "object and, optionally, split. Trains csp or coop in seconds.",
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
    compile_images: Annotated[
        bool, typer.Option("--compile", help="Compile image encoding on a CUDA GPU.  [train.compile]")
    ] = False,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, e.g. train.lr=1e-4; repeatable."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Determines every random choice.  [0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.  [auto]")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.  [auto]")] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory.  [runs/DATASET-METHOD-TIME]")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run in --out; with --epochs, a finished run gets more of them."
        ),
    ] = False,
    moved: Annotated[
        str | None,
        typer.Option("--dataset", metavar="DATASET", help="With --resume: where the dataset is now."),
    ] = None,
    on_error: Annotated[
        Literal["fail", "skip"],
        typer.Option(help="At an unreadable image: stop, or check all first, name those and do without."),
    ] = "fail",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show settings, device, memory plan, steps and stops; write nothing."),
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
    """Train a model on a dataset.

    The best epoch, and all that is fitted after training, are chosen on the dataset's validation split.

    Ctrl-C and SIGTERM finish the step and save it. Under torchrun the processes share the work.
    """
    flags = {"method": method, "backbone": backbone, "pretrained": pretrained, "init": init, "seed": seed,
             "device": device, "precision": precision, "epochs": epochs, "batch-size": batch_size, "lr": lr,
             "workers": workers, "compile": compile_images or None}  # fmt: skip
    skip = on_error == "skip"
    from refiner_cli.core.runtime.distributed import launched_ranks

    # The first process alone speaks.
    terminal.quiet = terminal.quiet or not launched_ranks(os.environ).is_main
    if resume:
        request = resumption(dataset, moved, out, seeds, labels, skip=skip, dry_run=dry_run)
        request = replace(request, asked=asked_settings(config, assign or [], flags))
    else:
        if moved:
            raise UsageError("--dataset needs --resume.", hint=f"Write: refiner train {quoted(moved)}")
        if dataset is None:
            raise UsageError("A dataset is missing.", hint="Try 'refiner train demo'.")
        start = index_settings(dataset, labels)
        settings, sources = configure(dataset, config, assign or [], flags, start)
        request = TrainRequest(dataset, settings, out, seeds, labels, skip)
        if out:
            check_output_folder("--out", out)
        if dry_run:
            from refiner_cli.cli.train_plan import show_train_plan

            show_train_plan(request, settings, sources, as_json=as_json)
            return
    from refiner_cli.cli.training import run_training

    code = run_training(request, as_json=as_json)
    if code:
        raise typer.Exit(code)
