"""The stage after training: calibrate the best checkpoint of a run, and keep how it was done.

Without validation images, and where the settings ask for it, models of a cross-validation are trained first.

Once it is chosen, the run's settings are written, the checkpoint is replaced as a whole by one with the
calibration in it, and last comes the record::

    calibration.json    settings, every candidate with its value, the choice, and which images it was made on

so a stage that was interrupted has either changed nothing, or has no record and is done again. Training
files in the checkpoint stay as they are: calibration changes nothing that training computes.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from refiner_cli._version import __version__
from refiner_cli.config import CalibrationConfig
from refiner_cli.core.model_io.checkpoint import (
    learned_tensors,
    load_saved_tensors,
    model_info,
    read_config,
    read_tensors,
    write_model,
)
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.core.runtime.device import RuntimeOptions
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.errors import ModelFileError
from refiner_cli.evaluation.scoring import ProgressFn, no_progress
from refiner_cli.files import write_json
from refiner_cli.training.calibrate import Calibrated, HeldOut, calibrate
from refiner_cli.training.checkpoints import step_of
from refiner_cli.training.events import CalibrationDone
from refiner_cli.training.run_dir import CALIBRATION, Run
from refiner_cli.training.state import OPTIMIZER_FILE, STATE_FILE

RECORD_SCHEMA = "refiner.calibration/1"
FoldModels = Callable[[ProgressFn], Sequence[HeldOut]]  # those of a cross-validation, trained if need be


def no_folds(_progress: ProgressFn) -> Sequence[HeldOut]:
    """No cross-validation."""
    return ()


@dataclass(frozen=True)
class CalibrationStage:
    """The stage of one run. Hold the run's lock while it runs."""

    run: Run
    model: Model  # of the run's method and backbone; its trained values are replaced by the checkpoint's
    benchmark: Benchmark
    options: RuntimeOptions
    folds: FoldModels = no_folds  # called where there is no validation image

    def is_done(self) -> bool:
        """Whether the best checkpoint has the calibration that the run's settings ask for."""
        record = record_of_best(self.run)
        return record is not None and record["settings"] == settings_json(self.run.config.calibration)

    def repeat(self) -> dict[str, Any]:
        """What the finished stage found, with best.json as it left it."""
        record = read_record(self.run)
        assert record is not None  # noqa: S101 - is_done() says so
        self.write_best(record)
        return record

    def complete(self, progress: ProgressFn) -> CalibrationDone:
        """Do what is left to do."""
        record = self.repeat() if self.is_done() else self.run_now(progress)
        measured = record.get("cross_validation", record["val"])
        return CalibrationDone(
            record["checkpoint"], record["calibration"], measured["before"], measured["after"],
            record["criterion"], record["seconds"],
        )  # fmt: skip

    def run_now(self, progress: ProgressFn = no_progress) -> dict[str, Any]:
        """Calibrate and store; returns the record.

        Raises ModelFileError if there is no validated checkpoint or it is damaged.
        """
        began, best = time.perf_counter(), self.run.read_best()
        if best is None:
            raise ModelFileError(f"The run {self.run.folder} has no validated checkpoint yet.")
        settings = self.run.config.calibration
        folds = () if self.benchmark.samples["val"] else self.folds(progress)
        self.load(best["checkpoint"])
        found = calibrate(self.model, self.benchmark, settings, self.options, progress, folds)
        self.run.forget_calibration()
        self.run.write()
        self.replace_checkpoint(best["checkpoint"], found)
        record = {
            "schema": RECORD_SCHEMA,
            "refiner": __version__,
            "checkpoint": best["checkpoint"],
            "settings": settings_json(settings),
            **found.to_json(),
            "seconds": round(time.perf_counter() - began, 1),
        }
        self.write_best(record)
        write_json(self.run.folder / CALIBRATION, record)
        return record

    def load(self, checkpoint: str) -> None:
        """The trained values of a checkpoint, not calibrated."""
        self.run.stored.require_intact(checkpoint)
        folder = self.run.stored.folder / checkpoint
        load_saved_tensors(self.model, learned_tensors(read_tensors(folder)), folder)
        self.model.calibration = Calibration()

    def replace_checkpoint(self, checkpoint: str, found: Calibrated) -> None:
        """Store the model with its calibration in place of the checkpoint."""
        folder = self.run.stored.folder / checkpoint
        info = dataclasses.replace(model_info(read_config(folder)), metrics=found.validation.to_json())
        with self.run.stored.new(step_of(folder)) as part:
            write_model(part, self.model, info, with_backbone=False)
            for name in (STATE_FILE, OPTIMIZER_FILE):
                shutil.copy2(folder / name, part / name)

    def write_best(self, record: dict[str, Any]) -> None:
        """best.json with the metrics after calibration; what it was selected by stays."""
        best = self.run.read_best()
        assert best is not None  # noqa: S101 - it names the checkpoint that was calibrated
        self.run.write_best({**best, "val": record["val"]["after"]})


def settings_json(settings: CalibrationConfig) -> dict[str, Any]:
    return settings.model_dump(mode="json")


def record_of_best(run: Run) -> dict[str, Any] | None:
    """calibration.json of a run; None unless it is that of the best checkpoint.

    Raises ModelFileError if best.json is damaged.
    """
    record, best = read_record(run), run.read_best()
    return record if record and best and record["checkpoint"] == best["checkpoint"] else None


def read_record(run: Run) -> dict[str, Any] | None:
    """calibration.json of a run; None if it is missing or damaged, as the stage can be repeated."""
    try:
        record = json.loads((run.folder / CALIBRATION).read_bytes())
        known = {"checkpoint", "settings", "criterion", "val", "calibration"} <= record.keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return record if known and record.get("schema") == RECORD_SCHEMA else None
