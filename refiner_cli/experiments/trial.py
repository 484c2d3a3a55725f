"""One cell of the study: an arm trained with one seed and measured on test."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from refiner_cli.config import Config, MethodConfig
from refiner_cli.core.model_io.checkpoint import read_model
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.registry import build_model
from refiner_cli.data.benchmark import Benchmark, load_benchmark
from refiner_cli.evaluation.evaluate import similarity_of
from refiner_cli.evaluation.feasibility.feasibility import FeasibilityAdjustment, FeasibilityMode
from refiner_cli.evaluation.feasibility.fit import fit_feasibility
from refiner_cli.evaluation.metrics.bias_sweep import sweep
from refiner_cli.evaluation.scoring import measure_split
from refiner_cli.experiments.folds import fold
from refiner_cli.experiments.variants import Variant
from refiner_cli.files import write_json
from refiner_cli.recipes import recipe_for
from refiner_cli.settings import resolve
from refiner_cli.training.calibrate import calibrate
from refiner_cli.training.run_dir import DatasetRef, Run, is_run, model_folder
from refiner_cli.training.setup import build_trainer, environment, resume_trainer
from refiner_cli.training.trainer import Trainer

RESULT = "result.json"
PRIORS: tuple[FeasibilityMode, ...] = tuple(kind for kind in get_args(FeasibilityMode) if kind != "none")
# Metrics by world: closed, open, open with a prior, and closed with another amount of clutter.
Found = dict[str, dict[str, Any]]


def with_clutter(amount: int) -> str:
    """The name of the closed world on pictures with that much clutter."""
    return f"clutter {amount}"


@dataclass(frozen=True)
class Trial:
    """Where a cell lies, and what it is made of."""

    folder: Path
    arm: Variant
    seed: int
    data: Path
    cluttered: Mapping[int, Path] = field(default_factory=dict)  # the same test with more or less clutter
    fold: int | None = None  # of the training part, instead of the benchmark as it is
    backbone: Path | None = None  # weights of a tiny backbone, instead of those that ship

    def trained(self) -> Trial:
        """The cell that this one's training is that of; most train for themselves."""
        arm = self.arm.of
        if arm is None:
            return self
        return dataclasses.replace(self, arm=arm, folder=self.folder.parents[1] / arm.name / self.folder.name)

    def benchmark(self) -> Benchmark:
        """What it is trained and measured on."""
        whole = load_benchmark(self.data)
        return whole if self.fold is None else fold(whole, self.fold)

    def config(self) -> Config:
        """The demo recipe, the arm's differences, and what makes every machine compute the same."""
        fixed: dict[str, Any] = {
            "seed": self.seed,
            "device": "cpu",
            "precision": "fp32",
            "train.num_workers": 0,
            "train.eval_every": 99,  # before the first step and at the end
        }
        if self.backbone is not None:
            fixed["pretrained"] = str(self.backbone)
        recipe = recipe_for("demo")
        assert recipe is not None  # noqa: S101 - it ships
        trained = {} if self.arm.of is None else self.arm.of.settings
        return resolve([(self.arm.name, {**fixed, **trained, **self.arm.settings})], recipe)

    def made_of(self) -> dict[str, Any]:
        """What the result follows from; a result of anything else is not taken."""
        prints = {with_clutter(n): load_benchmark(place).fingerprint() for n, place in self.cluttered.items()}
        if self.backbone is not None:
            prints["backbone"] = hashlib.sha256(self.backbone.read_bytes()).hexdigest()[:16]
        return {"config": self.config().model_dump(), "data": self.benchmark().fingerprint(), **prints}

    def found(self) -> Found | None:
        """The metrics, if the cell was measured."""
        file = self.folder / RESULT
        if not file.exists():
            return None
        content = json.loads(file.read_text("utf-8"))
        return content["test"] if content["made_of"] == self.made_of() else None


def train(cell: Trial, benchmark: Benchmark, log: Callable[[str], None]) -> Trainer:
    """The training of a cell, at its end; goes on with one that was interrupted."""
    config, folder = cell.config(), cell.folder / "run"
    if is_run(folder) and Run.open(folder).config != config:
        shutil.rmtree(folder)  # of an arm that was something else then
    if is_run(folder):
        training = resume_trainer(Run.open(folder), benchmark, log)
    else:
        ref = DatasetRef(benchmark.name, str(cell.data), benchmark.fingerprint())
        training = build_trainer(Run.create(folder, config, ref, environment()), benchmark, log)
    for _ in training.fit():
        pass
    return training


def read_with(model: Model, method: str, config: MethodConfig) -> Model:
    """A trained model with other settings, such as count outside training alone."""
    other = build_model(method, model.backbone, config, model.space)
    kept = {name: value for name, value in model.state_dict().items() if name in other.state_dict()}
    other.load_state_dict(kept)
    return other.eval()


def run_trial(cell: Trial, log: Callable[[str], None] = lambda _: None) -> Found:
    """Train, measure and write one cell."""
    found = cell.found()
    if found is not None:
        return found
    # Sums are made in another order on another number of threads.
    torch.set_num_threads(1)
    benchmark, trained = cell.benchmark(), cell.trained()
    training = train(trained, benchmark, log)
    setting, best = training.options, training.run.read_best()
    model, _ = read_model(model_folder(trained.folder / "run"))
    val = best["val"] if best else None
    if trained is not cell:
        model = read_with(model, cell.config().method, cell.config().model)
        model.calibration, metrics = calibrate(model, benchmark, setting)
        val = metrics.to_json()
    wide = benchmark.label_space("test", "open")
    spaces = {"closed": benchmark.label_space("test"), "open": wide}
    priors: dict[str, FeasibilityAdjustment | None] = {}
    if cell.arm.priors:
        similarity = similarity_of(model, benchmark, None)
        for kind in PRIORS:
            spaces[kind] = wide
            priors[kind], _ = fit_feasibility(model, benchmark, kind, similarity, setting)
    measured = measure_split(model, benchmark, "test", spaces, setting, adjustments=priors)
    for amount, place in cell.cluttered.items():
        world = with_clutter(amount)
        other = load_benchmark(place)
        measured |= measure_split(model, other, "test", {world: other.label_space("test")}, setting)
    test = {world: sweep(m.summary, m.space).to_json() for world, m in measured.items()}
    write_json(cell.folder / RESULT, {"made_of": cell.made_of(), "val": val, "test": test})
    return test


def run_trials(cells: Sequence[Trial]) -> list[Found]:
    """Cells of one training, one after the other."""
    return [run_trial(cell) for cell in cells]
