"""What a training reports while it runs, and the lines of ``metrics.jsonl``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from refiner_cli.evaluation.metrics.bias_sweep import Metrics
from refiner_cli.training.selection import Criterion


@dataclass(frozen=True)
class StepDone:
    step: int  # steps done, from 1
    total: int
    epoch: int  # from 0
    loss: float
    lr: float
    norm: float  # of the gradient, before clipping
    images: int  # of this step, in all processes
    seconds: float
    waited: float  # seconds of it that went into waiting for data
    skipped: str | None  # why the parameters were left unchanged: what was not finite

    def to_json(self) -> dict[str, Any]:
        row = {
            "kind": "step", "step": self.step, "epoch": self.epoch, "loss": finite(self.loss),
            "lr": self.lr, "norm": finite(self.norm),
            "seconds": round(self.seconds, 4), "waited": round(self.waited, 4),
        }  # fmt: skip
        return row | ({"skipped": self.skipped} if self.skipped else {})


@dataclass(frozen=True)
class Validated:
    step: int
    epoch: int  # epochs done
    metrics: Metrics  # of the plain model: nothing is calibrated before training is over
    best: bool  # so far
    criterion: Criterion  # what "best" is decided by
    seconds: float
    waiting: float  # share of the time since the last validation that the steps waited for data
    total: int  # steps in all

    def to_json(self) -> dict[str, Any]:
        return {"kind": "val", "step": self.step, "total": self.total, "epoch": self.epoch,
                **self.metrics.to_json(), "waiting": round(self.waiting, 4)}  # fmt: skip


@dataclass(frozen=True)
class CalibrationDone:
    """Training is over and the best checkpoint is calibrated."""

    checkpoint: str
    calibration: dict[str, Any]
    before: dict[str, Any]  # metrics on the images that it was chosen on
    after: dict[str, Any]
    criterion: str  # the metric that the settings were compared by; "none" where nothing was
    seconds: float


@dataclass(frozen=True)
class Stopped:
    """A stop was requested; the state is saved."""

    step: int


Event = StepDone | Validated | CalibrationDone | Stopped


def finite(value: float) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return value if math.isfinite(value) else None
