"""One trial of the study: a variant trained with one seed and measured on test."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from refiner_cli.config import Config
from refiner_cli.core.model_io.checkpoint import read_model
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
from refiner_cli.training.provenance import provenance, run_provenance
from refiner_cli.training.run_dir import DatasetRef, Run, is_run, model_folder
from refiner_cli.training.setup import build_trainer, environment, resume_trainer
from refiner_cli.training.trainer import Trainer

RESULT = "result.json"
FEASIBILITY_MODES: tuple[FeasibilityMode, ...] = tuple(
    kind for kind in get_args(FeasibilityMode) if kind != "none"
)
# Metrics by world: closed, open, open with a feasibility mode, and closed with another amount of clutter.
Found = dict[str, dict[str, Any]]


def with_clutter(amount: int) -> str:
    """The name of the closed world with that much clutter in the test images."""
    return f"clutter {amount}"


@dataclass(frozen=True)
class Trial:
    """The folder of a trial, and what determines its result."""

    folder: Path
    variant: Variant
    seed: int
    data: Path
    clutter_tests: Mapping[int, Path] = field(
        default_factory=dict
    )  # the same test split with other amounts of clutter
    fold: int | None = None  # of the training split, instead of the benchmark itself
    backbone: Path | None = None  # weights of a tiny backbone, instead of the built-in ones

    def trained(self) -> Trial:
        """The trial whose training this one uses; itself, unless its variant shares another's."""
        variant = self.variant.of
        if variant is None:
            return self
        return dataclasses.replace(
            self, variant=variant, folder=self.folder.parents[1] / variant.name / self.folder.name
        )

    def benchmark(self) -> Benchmark:
        """The benchmark to train and measure on."""
        whole = load_benchmark(self.data)
        return whole if self.fold is None else fold(whole, self.fold)

    def config(self) -> Config:
        """The demo recipe, the variant's differences, and what makes results equal on every machine."""
        fixed: dict[str, Any] = {
            "seed": self.seed,
            "device": "cpu",
            "precision": "fp32",
            "train.num_workers": 0,
            "train.eval_every": 99,  # at the beginning and the end only
        }
        if self.backbone is not None:
            fixed["pretrained"] = str(self.backbone)
        recipe = recipe_for("demo")
        assert recipe is not None  # noqa: S101 - it ships
        trained = {} if self.variant.of is None else self.variant.of.settings
        return resolve([(self.variant.name, {**fixed, **trained, **self.variant.settings})], recipe)

    def determinants(self) -> dict[str, Any]:
        """What determines the result; a stored result of anything else is not used."""
        prints = {
            with_clutter(n): load_benchmark(place).fingerprint() for n, place in self.clutter_tests.items()
        }
        config = self.config()
        return {
            **provenance(config),
            "config": config.model_dump(mode="json"),
            "data": self.benchmark().fingerprint(),
            **prints,
        }

    def found(self) -> Found | None:
        """The stored metrics, or None."""
        file = self.folder / RESULT
        if not file.exists():
            return None
        content = json.loads(file.read_text("utf-8"))
        return content["test"] if content["determinants"] == self.determinants() else None


def train_trial(trial: Trial, benchmark: Benchmark, log: Callable[[str], None]) -> Trainer:
    """The finished training of a trial; an interrupted one is resumed, one of anything else discarded."""
    config, folder = trial.config(), trial.folder / "run"
    if is_run(folder) and not same_training(Run.open(folder), config):
        shutil.rmtree(folder)
    if is_run(folder):
        training = resume_trainer(Run.open(folder), benchmark, log)
    else:
        ref = DatasetRef(benchmark.name, str(trial.data), benchmark.fingerprint())
        training = build_trainer(
            Run.create(folder, config, ref, environment() | provenance(config)), benchmark, log
        )
    for _ in training.fit():
        pass
    return training


def same_training(run: Run, config: Config) -> bool:
    """Whether a run is the training of a configuration: what calibration tries afterwards may differ."""
    alike = run.config.model_copy(update={"calibration": config.calibration}) == config
    return alike and run_provenance(run) == provenance(config)


def run_trial(trial: Trial, log: Callable[[str], None] = lambda _: None) -> Found:
    """Train, measure and write one trial."""
    found = trial.found()
    if found is not None:
        return found
    # The order of sums, so their last digits, depends on the number of threads.
    torch.set_num_threads(1)
    benchmark, trained = trial.benchmark(), trial.trained()
    training = train_trial(trained, benchmark, log)
    setting, best = training.options, training.run.read_best()
    model, _ = read_model(model_folder(trained.folder / "run"))
    val = best["val"] if best else None
    if trial.config().calibration != training.run.config.calibration:
        val = calibrate(model, benchmark, trial.config().calibration, setting).metrics.to_json()
    wide = benchmark.label_space("test", "open")
    spaces = {"closed": benchmark.label_space("test"), "open": wide}
    adjustments: dict[str, FeasibilityAdjustment | None] = {}
    if trial.variant.feasibility:
        similarity = similarity_of(model, benchmark, None)
        for kind in FEASIBILITY_MODES:
            spaces[kind] = wide
            adjustments[kind], _ = fit_feasibility(model, benchmark, kind, similarity, setting)
    measured = measure_split(model, benchmark, "test", spaces, setting, adjustments=adjustments)
    for amount, place in trial.clutter_tests.items():
        world = with_clutter(amount)
        other = load_benchmark(place)
        measured |= measure_split(model, other, "test", {world: other.label_space("test")}, setting)
    test = {world: sweep(m.summary, m.space).to_json() for world, m in measured.items()}
    write_json(trial.folder / RESULT, {"determinants": trial.determinants(), "val": val, "test": test})
    return test


def run_trials(trials: Sequence[Trial]) -> list[Found]:
    """Trials that share a training, one after the other."""
    return [run_trial(trial) for trial in trials]
