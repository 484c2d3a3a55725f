"""``refiner train --dry-run``: what a training would do, without doing it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refiner_cli.cli.console import terminal
from refiner_cli.cli.train_request import TrainRequest
from refiner_cli.cli.training_data import open_training_data
from refiner_cli.errors import DatasetError
from refiner_cli.settings import toml_text

if TYPE_CHECKING:
    from refiner_cli.config import Config, TrainConfig
    from refiner_cli.data.benchmark import Benchmark
    from refiner_cli.training.selection import Criterion


@dataclass(frozen=True)
class TrainPlan:
    """What a training would do."""

    settings: dict[str, Any]  # those that are not defaults, with their source
    machine: tuple[str, ...]  # device, precision, memory, weights: sentences
    images: int
    batch_size: int
    steps_per_epoch: int
    steps: int
    validations: int
    criterion: Criterion  # what the best checkpoint is selected by
    parameters: int
    out: str

    def to_json(self) -> dict[str, Any]:
        return {"schema": "refiner.train-plan/1", **vars(self), "machine": list(self.machine)}


def show_train_plan(
    request: TrainRequest, config: Config, sources: Mapping[str, str], *, as_json: bool
) -> None:
    """Print the plan of a new training; nothing is written or downloaded."""
    plan = plan_training(request, config, sources)
    if as_json:
        terminal.json(plan.to_json())
        return
    terminal.words(f"settings that are not defaults ('refiner config' lists all of {config.method}):")
    for key, (value, source) in plan.settings.items():
        terminal.data(f"  {key} = {toml_text(value)}  # {source}")
    terminal.data("machine and memory:")
    for line in plan.machine:
        terminal.words(line, "  ")
    train = config.train
    terminal.data("steps:")
    terminal.words(
        f"{plan.images:,} images in batches of {plan.batch_size}: {plan.steps_per_epoch:,} steps per "
        f"epoch, {plan.steps:,} in all"
        + (f" (train.max_steps ends it before {train.epochs} epochs)" if cut_short(plan, config) else ""),
        "  ",
    )
    terminal.words(f"{plan.validations} validations; {selection_text(plan)} is kept", "  ")
    saved = f"every {train.checkpoint_minutes:g} minutes" if train.checkpoint_minutes else "after every step"
    terminal.words(
        f"a checkpoint {saved} and at every validation; Ctrl-C and SIGTERM save one and stop", "  "
    )
    terminal.words(f"stops after {train.max_nonfinite_steps} consecutive steps with a NaN or infinity", "  ")
    terminal.data(f"run: {plan.out}")


def cut_short(plan: TrainPlan, config: Config) -> bool:
    return plan.steps < config.train.epochs * plan.steps_per_epoch


def plan_training(request: TrainRequest, config: Config, sources: Mapping[str, str]) -> TrainPlan:
    """Build the training as it would begin, with random weights where the real ones are not on this machine.

    Raises:
        RefinerError: whatever would end the training at its start.
    """
    from refiner_cli.cli.training import default_folder
    from refiner_cli.config import flatten
    from refiner_cli.training.folder_lock import require_unused
    from refiner_cli.training.run_dir import DatasetRef, Run
    from refiner_cli.training.setup import build_trainer

    folder = request.out or default_folder(request)
    require_unused(folder)
    require_drawn(request.dataset)
    benchmark = open_training_data(request.dataset, request.labels)
    lines: list[str] = []
    dry = without_downloads(config, lines.append)
    ref = DatasetRef(benchmark.name, str(benchmark.root.resolve()), benchmark.fingerprint())
    trainer = build_trainer(Run(folder, dry, ref), benchmark, lines.append)
    values = dict(flatten(config.model_dump()))
    return TrainPlan(
        {key: (values[key], source) for key, source in sources.items()},
        tuple(lines),
        len(trainer.files),
        config.train.batch_size,
        trainer.schedule.steps_per_epoch,
        trainer.total,
        trainer.schedule.validations(trainer.total),
        criterion_of(benchmark, config.train),
        sum(p.numel() for p in trainer.model.trainable_parameters().values()),
        str(folder),
    )


def criterion_of(benchmark: Benchmark, train: TrainConfig) -> Criterion:
    """What the best checkpoint is selected by, as far as the images of validation decide it."""
    from refiner_cli.training.selection import selection_criterion

    trained = set(benchmark.pairs["train"])
    seen = [sample.pair in trained for sample in benchmark.samples["val"]]
    if train.selection == "loss" and seen:
        return "validation loss"
    defined = {"S": any(seen), "U": not all(seen)}
    both = all(defined.values())
    return selection_criterion({name: 0.0 for name, there in (defined | {"AUC": both}).items() if there})


def selection_text(plan: TrainPlan) -> str:
    from refiner_cli.training.selection import MEANING

    return f"the best checkpoint by {MEANING[plan.criterion]}"


def require_drawn(dataset: str) -> None:
    """Raise DatasetError for the demo if it would have to be drawn now."""
    from refiner_cli.data.paths import home

    if dataset == "demo" and not (home(os.environ).datasets / "demo").is_dir():
        raise DatasetError("The demo dataset is not drawn yet.", hint="'refiner download demo' draws it.")


def without_downloads(config: Config, log: Callable[[str], None]) -> Config:
    """The configuration with random weights if its own would be downloaded, and without a cache on disk."""
    from refiner_cli.core.towers.architectures import find_architecture
    from refiner_cli.core.towers.weights import RANDOM_WEIGHTS, find_weights

    source = find_weights(find_architecture(config.backbone), config.pretrained)
    changed: dict[str, Any] = {}
    if source.tag or source.repository:
        log(f"the weights {source.pretrained} of {config.backbone} are downloaded, unless they were before")
        changed["pretrained"] = RANDOM_WEIGHTS
    if config.train.cached_views:
        log(f"{config.train.cached_views} augmented views per image are computed first and kept in the run")
        changed["train"] = config.train.model_copy(update={"cached_views": 0})
    return config.model_copy(update=changed)
