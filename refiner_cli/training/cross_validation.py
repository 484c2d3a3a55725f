"""Cross-validation, for a calibration without validation images.

The training split is divided (see :mod:`~refiner_cli.training.training_folds`), and the run's own recipe is
trained on every part of it, on the same frozen backbone. So images get scores from models that did not learn
from them. Every such training is a run of its own below the run's folder, which resumes like any other::

    folds/1/    a run directory

The parts have fewer images and pairs than the model that is calibrated has learned from.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from refiner_cli.config import Config
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.device import RuntimeOptions
from refiner_cli.core.runtime.log import LogFn
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.evaluation.scoring import ProgressFn
from refiner_cli.training.calibrate import HeldOut
from refiner_cli.training.calibration_stage import CalibrationStage
from refiner_cli.training.events import Stopped
from refiner_cli.training.run_dir import CALIBRATION, INIT, TOKENS, DatasetRef, Run, is_run
from refiner_cli.training.state import result_settings
from refiner_cli.training.trainer import StopRequestedError, Trainer
from refiner_cli.training.training_folds import training_folds

FOLDS = "folds"


@dataclass(frozen=True)
class CrossValidation:
    """The cross-validation that a run's settings ask for.

    Args:
        run: its ``calibration.folds`` says how many parts there are.
        benchmark: what the run is trained on.
        model: the run's model; its backbone and device are shared.
        build: makes the trainer of a part's run, at its last checkpoint.
        log: receives a line about every part.
    """

    run: Run
    benchmark: Benchmark
    model: Model
    options: RuntimeOptions
    build: Callable[[Run, Benchmark], Trainer]
    log: LogFn

    def models(self, progress: ProgressFn) -> list[HeldOut]:
        """The model of every part, with the part's benchmark; what is not trained yet is trained.

        Args:
            progress: called after every step; may raise StopRequestedError, and then the part is saved.
        """
        config = self.run.config
        if not config.calibration.folds:
            return []
        parts = training_folds(self.benchmark, config.calibration.folds, config.seed)
        if not parts:
            self.log("no cross-validation: no pair has a second image or can be held out")
        for folder in (self.run.folder / FOLDS).glob("*"):
            if folder.name not in {str(number) for number in range(1, len(parts) + 1)}:
                shutil.rmtree(folder)  # of a cross-validation with more parts
        return [self.trained(part, number, len(parts), progress) for number, part in enumerate(parts, 1)]

    def trained(self, part: Benchmark, number: int, count: int, progress: ProgressFn) -> HeldOut:
        """One part's model."""
        run = self.part_run(part, number)
        unseen = len(set(part.pairs["val"]) - set(part.pairs["train"]))
        images = {split: len(samples) for split, samples in part.samples.items()}
        self.log(
            f"cross-validation, part {number} of {count}: {images['train']} images to learn from, "
            f"{images['val']} held out, with {unseen} pairs as unseen ones"
        )
        if not (run.folder / CALIBRATION).is_file():
            self.train(run, part, progress)
        config, device = self.run.config, self.model.device
        model = build_model(config.method, self.model.backbone, config.model, part.vocabulary).to(device)
        best = run.read_best()
        assert best is not None  # noqa: S101 - a finished training has one
        CalibrationStage(run, model, part, self.options).load(best["checkpoint"])
        return HeldOut(model.eval(), part)

    def train(self, run: Run, part: Benchmark, progress: ProgressFn) -> None:
        """Train a part's run to its end."""
        # Without a validation split, as the run itself: nothing may be chosen on images that are held out.
        trainer = self.build(run, replace(part, samples={**part.samples, "val": ()}))

        def stop_requested() -> bool:
            try:
                progress(trainer.step, trainer.total)
            except StopRequestedError:
                return True
            return False

        for event in trainer.fit(stop_requested):
            if isinstance(event, Stopped):
                raise StopRequestedError
        shutil.rmtree(run.folder / TOKENS, ignore_errors=True)

    def part_run(self, part: Benchmark, number: int) -> Run:
        """The run of a part; one that learned with other settings or from other images is replaced."""
        # A part is not calibrated: it is what the calibration is chosen by.
        settings = self.run.config.calibration.model_copy(update={"folds": 0})
        config = self.run.config.model_copy(update={"calibration": settings})
        ref = DatasetRef(f"{self.benchmark.name}, part {number}", str(part.root), part.fingerprint())
        folder = self.run.folder / FOLDS / str(number)
        if is_run(folder):
            found = Run.open(folder)
            if is_same_training(found, config, ref):
                found = replace(found, config=config, dataset=ref)
                found.write()
                return found
            shutil.rmtree(folder)
        return Run.create(folder, config, ref, {}, fill=self.copy_initial)

    def copy_initial(self, folder: Path) -> None:
        """Give a part's run what this one starts from."""
        if (self.run.folder / INIT).is_dir():
            shutil.copytree(self.run.folder / INIT, folder / INIT)


def is_same_training(run: Run, config: Config, dataset: DatasetRef) -> bool:
    """Whether a run computes what a training with this configuration does, wherever the images are now."""
    settings = [result_settings(one.model_dump(mode="json")) for one in (run.config, config)]
    return settings[0] == settings[1] and run.dataset.fingerprint == dataset.fingerprint
