"""What it takes to go on with a training, beside the model itself.

::

    training.json          position, best so far, loss scaler, resolved configuration
    training.safetensors   the optimizer, as "<parameter>.<name>"

There are no generator states and no scheduler to keep: the random numbers of a step are a function
of (seed, step), those of an image of (seed, epoch, row), the order of the data of (seed, epoch), and
the learning rate of the step. Nothing in these files can run code.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from refiner_cli.config import Config, flatten
from refiner_cli.core.model_io.checkpoint import (
    LEARNED,
    ModelInfo,
    put_learned,
    read_config,
    read_tensors,
    write_model,
)
from refiner_cli.core.models.base import Calibration, Model
from refiner_cli.errors import ModelFileError, RefinerError
from refiner_cli.training.run_dir import Run

STATE, OPTIMIZER = "training.json", "training.safetensors"
FREE = ("device", "train.workers", "train.save_minutes")  # may change without changing the training


@dataclass
class Position:
    """Where a training is."""

    step: int = 0  # steps done
    validated: bool = False  # whether the validation that is due after this step was made
    best: dict[str, Any] | None = None  # what best.json says
    skipped: int = 0  # steps skipped in a row
    images: int = 0  # computed at once
    prompts: int = 0  # encoded at once


class NotSavedError(RefinerError):
    """A checkpoint could not be written; the ones before it are whole."""


@dataclass(frozen=True)
class State:
    """The live objects that a checkpoint is made of, and its way to the run directory and back."""

    run: Run
    model: Model
    optimizer: torch.optim.Optimizer | None
    scaler: torch.amp.GradScaler

    def save(self, position: Position, metrics: dict[str, Any] | None = None) -> None:
        """Write a checkpoint. Raises NotSavedError, for instance when the disk is full."""
        data, step = self.run.dataset, position.step
        info = ModelInfo(self.run.config.method, data.name, data.path, data.fingerprint, step, metrics or {})
        content = {
            "position": asdict(position),
            "scaler": self.scaler.state_dict(),
            "config": self.run.config.model_dump(),
        }
        try:
            with self.run.new_checkpoint(step) as folder:
                write_model(folder, self.model, info, with_backbone=False)
                save_file(self._tensors(), folder / OPTIMIZER)
                (folder / STATE).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise NotSavedError(
                f"The checkpoint of step {step} could not be written to {self.run.folder} ({reason}).",
                hint=f"{self.run.last_words()} Make room, then go on with --resume.",
            ) from None

    def restore(self, folder: Path) -> Position:
        """Fill model, optimizer and scaler. Raises ModelFileError if a file is damaged or another's."""
        try:
            content = json.loads((folder / STATE).read_text("utf-8"))
            tensors = load_file(folder / OPTIMIZER)
            position = Position(**content["position"])
            config, scaler = Config.model_validate(content["config"]), content["scaler"]
        except Exception as error:  # noqa: BLE001 - safetensors, JSON, pydantic and the system have their own
            raise ModelFileError(f"The training state in {folder} cannot be read ({error}).") from None
        now, then = frozen(self.run.config), frozen(config)
        for key, value in now.items():
            if value != then[key]:
                raise ModelFileError(
                    f"{key} in {self.run.folder} is {value!r} now and was {then[key]!r} in {folder.name}.",
                    hint="Start another run, or put the old value back into run.json.",
                )
        learned = read_tensors(folder).items()
        put_learned(
            self.model, {n.removeprefix(LEARNED): v for n, v in learned if n.startswith(LEARNED)}, folder
        )
        self.model.calibration = Calibration(**read_config(folder)["calibration"])
        if self.scaler.is_enabled() and scaler:
            self.scaler.load_state_dict(scaler)
        self._put(tensors, folder)
        return position

    def _tensors(self) -> dict[str, Tensor]:
        if self.optimizer is None:
            return {}
        return {
            f"{name}.{key}": value.detach().cpu().contiguous().clone()
            for name, parameter in self.model.learned().items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }

    def _put(self, tensors: dict[str, Tensor], folder: Path) -> None:
        if self.optimizer is None:
            return
        self.optimizer.state.clear()
        parameters = self.model.learned()
        for name, value in tensors.items():
            owner, key = name.rsplit(".", 1)
            parameter = parameters.get(owner)
            if parameter is None or (value.ndim and value.shape != parameter.shape):
                raise ModelFileError(f"The training state in {folder} does not fit the model at {owner!r}.")
            # A step count (a number) stays on the CPU, where the optimizer keeps it.
            put = value.to(parameter.device) if value.ndim else value
            self.optimizer.state.setdefault(parameter, {})[key] = put


def frozen(config: Config) -> dict[str, Any]:
    """Every dotted key that decides what a training computes, and its value."""
    return {key: value for key, value in flatten(config.model_dump()) if key not in FREE}
