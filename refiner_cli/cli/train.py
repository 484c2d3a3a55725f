"""``refiner train``: learn a dataset's compositions on a frozen backbone."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refiner_cli.cli.console import INTERRUPTED, Json, grid, terminal
from refiner_cli.errors import UsageError

if TYPE_CHECKING:
    from refiner_cli.config import Config, Layer
    from refiner_cli.core.trainer import Event, Training

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
    as_json: Json = False,
) -> None:
    """Train on a dataset; the best epoch and all inference weights come from its validation split."""
    flags = {"method": method, "backbone": backbone, "pretrained": pretrained, "seed": seed, "device": device,
             "precision": precision}  # fmt: skip
    if resume:
        if out is None:
            raise UsageError("--resume needs the run: --out RUN.")
        training = resumed(out)
    elif dataset is None:
        raise UsageError("A dataset is missing.", hint="Try 'refiner train demo'.")
    else:
        training = fresh(dataset, configure(dataset, config, assign or [], flags), out)
    result = follow(training)
    if as_json:
        terminal.json({"schema": "refiner.train/1", **result})
    elif result["val"]:
        table = grid("Best on validation", "step", "S", "U", "HM", "AUC")
        val = result["val"]
        table.add_row(str(result["best_step"]), *(f"{val[name]:.1f}" for name in ("S", "U", "HM", "AUC")))
        terminal.table(table)
        terminal.data(f"run {result['run']}")
    if result["interrupted"]:
        raise typer.Exit(INTERRUPTED)


def configure(dataset: str, file: Path | None, assignments: list[str], flags: dict[str, Any]) -> Config:
    """Recipe of the dataset, file, environment, flags: the later wins."""
    from refiner_cli.config import from_assignments, from_environment, from_file, resolve
    from refiner_cli.recipes import recipe_for

    layers: list[Layer] = []
    recipe = recipe_for(dataset)
    if recipe:
        terminal.note(f"settings of the recipe {recipe[0]}")
        layers.append(recipe)
    if file:
        layers.append(from_file(file))
    layers.append(from_environment(os.environ))
    layers.append(("command line", {name: value for name, value in flags.items() if value is not None}))
    layers.append(from_assignments(assignments))
    return resolve(layers)


def fresh(dataset: str, config: Config, out: Path | None) -> Training:
    """A new run in its directory."""
    from refiner_cli.cli.common import open_dataset
    from refiner_cli.core.run import DatasetRef, Run
    from refiner_cli.core.start import environment, start

    benchmark = open_dataset(dataset)
    ref = DatasetRef(benchmark.name, str(benchmark.root.resolve()), benchmark.fingerprint())
    stamp = dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = out or Path("runs") / f"{benchmark.name}-{config.method}-{stamp}"
    run = Run.create(folder, config, ref, environment())
    return start(run, benchmark, terminal.note)


def resumed(out: Path) -> Training:
    """The training of an existing run, at its last whole checkpoint."""
    from refiner_cli.core.run import Run
    from refiner_cli.core.start import resume
    from refiner_cli.data.benchmark import load_benchmark

    run = Run.open(out)
    return resume(run, load_benchmark(Path(run.dataset.path), run.dataset.name), terminal.note)


def follow(training: Training) -> dict[str, Any]:
    """Run to the end and tell what happens."""
    from refiner_cli.core.trainer import Stopped, Validated

    stopped = False
    with terminal.progress("training") as progress:
        for event in training.run_on():
            tell(event)
            if isinstance(event, Stopped):
                stopped = True
            elif not isinstance(event, Validated):
                progress(event.step, event.total)
    best = training.run.best() or {}
    return {"run": str(training.run.folder), "step": training.step, "best_step": best.get("step"),
            "val": best.get("val"), "interrupted": stopped}  # fmt: skip


def tell(event: Event) -> None:
    from refiner_cli.core.trainer import Stopped, Validated

    if isinstance(event, Validated):
        m = event.metrics
        mark = "  best so far" if event.best else ""
        terminal.note(
            f"epoch {event.epoch}, step {event.step}: validation S {m.S:.1f} U {m.U:.1f} HM {m.HM:.1f} "
            f"AUC {m.AUC:.1f}{mark}"
        )
    elif isinstance(event, Stopped):
        terminal.note(f"stopped after step {event.step}; the state is saved")
