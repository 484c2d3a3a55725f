"""What it takes to resume a training, besides the model itself.

::

    training.json          progress, loss scaler, resolved configuration
    training.safetensors   the optimizer, as "<parameter>.<name>"

There are no generator states and no scheduler to keep: the random numbers of a step are a function
of (seed, step), those of an image of (seed, epoch, row), the order of the data of (seed, epoch), and
the learning rate of the step. Nothing in these files can run code.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refiner_cli.config import flatten
from refiner_cli.core.model_io.checkpoint import (
    ModelInfo,
    learned_tensors,
    load_saved_tensors,
    read_stored,
    read_tensors,
    write_model,
)
from refiner_cli.core.model_io.tensor_files import load_tensors_from, save_tensors
from refiner_cli.core.models.base import Model
from refiner_cli.core.runtime.log import LogFn
from refiner_cli.errors import ModelFileError, RefinerError
from refiner_cli.files import reason_of
from refiner_cli.training.checkpoints import step_of
from refiner_cli.training.gradient_step import GradientStep, batch_norm_note
from refiner_cli.training.run_dir import Run
from refiner_cli.training.selection import is_better

STATE_FILE, OPTIMIZER_FILE = "training.json", "training.safetensors"
FREE_KEYS = (
    "device",
    "train.memory_gb",
    "train.num_workers",
    "train.checkpoint_minutes",
)  # may change without changing the result


@dataclass
class TrainProgress:
    """How far a training has come."""

    step: int = 0  # steps done
    validated: bool = False  # whether the validation due after this step was done
    validation: dict[str, Any] | None = None  # of the plain model after this step, as best.json would name it
    best: dict[str, Any] | None = None  # what best.json says
    nonfinite_steps: int = 0  # consecutive ones, skipped
    micro_batch: int = 0  # images computed at once
    text_chunk_size: int = 0  # prompts encoded at once


class NotSavedError(RefinerError):
    """A checkpoint could not be written; the ones before it are complete."""


@dataclass(frozen=True)
class TrainerState:
    """The objects whose state a checkpoint holds; writes and reads checkpoints of a run."""

    run: Run
    model: Model
    optimizer: torch.optim.Optimizer | None
    scaler: torch.amp.GradScaler

    def save(self, progress: TrainProgress, metrics: dict[str, Any] | None = None) -> None:
        """Write a checkpoint. Raises NotSavedError, for instance when the disk is full."""
        data, step = self.run.dataset, progress.step
        info = ModelInfo(self.run.config.method, data.name, data.path, data.fingerprint, step, metrics or {})
        content = {
            "progress": asdict(progress),
            "scaler": self.scaler.state_dict(),
            **self.run.to_json(),  # so that a damaged run.json can be written again
        }
        try:
            with self.run.stored.new(step) as folder:
                write_model(folder, self.model, info, with_backbone=False)
                save_tensors(self._tensors(), folder / OPTIMIZER_FILE)
                (folder / STATE_FILE).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        except OSError as error:
            raise NotSavedError(
                f"The checkpoint of step {step} could not be written to {self.run.folder} "
                f"({reason_of(error)}).",
                hint=f"{self.run.resume_point()} Free some disk space, then resume with --resume.",
            ) from None

    def restore_newest(self, log: LogFn) -> TrainProgress | None:
        """Return to the newest undamaged checkpoint; None if there is no checkpoint yet.

        Raises ModelFileError if all checkpoints are damaged, or the newest undamaged one does not fit.
        """
        stored = self.run.stored
        folder = stored.newest_intact(log)
        if folder is None:
            return None
        progress = self.restore(folder)
        best = progress.best
        if best and not stored.is_intact(best["checkpoint"]):
            progress.best = self.best_until(progress.step)
            other = progress.best["checkpoint"] if progress.best else "none"
            log(f"the best checkpoint {best['checkpoint']} is missing or damaged; best now: {other}")
        if progress.best is None:
            progress.validated = False
        return progress

    def best_until(self, step: int) -> dict[str, Any] | None:
        """The best of the undamaged, validated checkpoints up to a step, by what they were selected by."""
        best = None
        for path in self.run.stored.all():
            if step_of(path) <= step and self.run.stored.is_intact(path.name):
                record = json.loads((path / STATE_FILE).read_text("utf-8"))["progress"].get("validation")
                best = record if record and is_better(record, best) else best
        return best

    def restore(self, folder: Path) -> TrainProgress:
        """Fill model, optimizer and scaler. Raises ModelFileError if a file is damaged or another's."""
        try:
            content = json.loads((folder / STATE_FILE).read_text("utf-8"))
            tensors = load_tensors_from(folder / OPTIMIZER_FILE)
            progress = TrainProgress(**content["progress"])
            then, scaler = result_settings(content["config"]), content["scaler"]
        except Exception as error:  # noqa: BLE001 - safetensors, JSON and the system have their own
            raise ModelFileError(f"The training state in {folder} cannot be read ({error}).") from None
        for key, value in result_settings(self.run.config.model_dump(mode="json")).items():
            before = [change[key][0] for change in self.run.changes if key in change]
            if then.get(key, value) not in (value, *before):
                raise ModelFileError(
                    f"{key} in {self.run.folder} is {value!r} now and was {then[key]!r} in {folder.name}.",
                    hint="Start another run, or put the old value back into run.json.",
                )
        stored, spec = read_stored(folder)[1], self.model.backbone.spec
        if stored.backbone.fingerprint != self.model.backbone.fingerprint():
            raise ModelFileError(
                f"The backbone {spec.name} ({spec.pretrained}) is not the one that {folder} was trained on.",
                hint="Put its weights back, or start another run.",
            )
        load_saved_tensors(self.model, learned_tensors(read_tensors(folder)), folder)
        self.model.calibration = stored.calibration.value()
        if self.scaler.is_enabled() and scaler:
            self.scaler.load_state_dict(scaler)
        self._put(tensors, folder)
        return progress

    def _tensors(self) -> dict[str, Tensor]:
        if self.optimizer is None:
            return {}
        return {
            f"{name}.{key}": value.detach().cpu().contiguous().clone()
            for name, parameter in self.model.trainable_parameters().items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }

    def _put(self, tensors: dict[str, Tensor], folder: Path) -> None:
        if self.optimizer is None:
            return
        self.optimizer.state.clear()
        parameters = self.model.trainable_parameters()
        for name, value in tensors.items():
            owner, key = name.rsplit(".", 1)
            parameter = parameters.get(owner)
            if parameter is None or (value.ndim and value.shape != parameter.shape):
                raise ModelFileError(f"The training state in {folder} does not fit the model at {owner!r}.")
            # A step count (a number) stays on the CPU, where the optimizer keeps it.
            put = value.to(parameter.device) if value.ndim else value
            self.optimizer.state.setdefault(parameter, {})[key] = put


def restore_sizes(step: GradientStep, progress: TrainProgress, share: int) -> None:
    """Compute as many images and prompts at once as before, on which the last digits of a result depend.

    More than the plan for the memory that is free now allows would not fit; the smaller number counts.

    Args:
        step: as it was planned.
        share: images of a batch that this process computes.
    """
    planned = step.micro_batch, step.model.memory.text_chunk_size
    before = min(progress.micro_batch, share), progress.text_chunk_size
    images, prompts = map(min, planned, before)
    step.micro_batch = images
    step.model.memory = replace(step.model.memory, text_chunk_size=prompts)
    if (images, prompts) != before:
        step.log(
            f"{images} images and {prompts} prompts at once, because more do not fit now; before it was "
            f"interrupted it computed {before[0]} and {before[1]}, which changes the last digits of a result"
        )
    elif before != planned:
        step.log(f"{images} images and {prompts} prompts at once, as before it was interrupted")
        if note := batch_norm_note(step.model, images, step.config.batch_size):
            step.log(note)


def is_free(key: str) -> bool:
    """Whether a setting may change without changing what a training computes; calibration comes after it."""
    return key in FREE_KEYS or key.startswith("calibration.")


def result_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Every dotted key of a configuration that decides what a training computes, and its value."""
    return {key: value for key, value in flatten(config) if not is_free(key)}
