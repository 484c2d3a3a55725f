"""The result of an evaluation: metrics with intervals, tables, and how each choice was made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from refiner_cli.core.models.calibration import Calibration
from refiner_cli.evaluation.feasibility.fit import FeasibilityFit
from refiner_cli.evaluation.metrics.bias_sweep import Metrics, sweep
from refiner_cli.evaluation.metrics.bootstrap import (
    BOOTSTRAP_SAMPLES,
    Interval,
    MeasuredSplit,
    interval_json,
    intervals,
    resample,
    top_k_intervals,
)
from refiner_cli.evaluation.metrics.breakdown import (
    BreakdownRow,
    hardest_unseen,
    per_image,
    per_pair,
    per_primitive,
    top_k,
)
from refiner_cli.evaluation.metrics.confidence import MeasuredConfidence
from refiner_cli.evaluation.metrics.seen_unseen import SweepProtocol

DEFAULT_TOP_K = (1, 3, 5, 10)


@dataclass(frozen=True)
class WorldResult:
    """One split in one world.

    ``bias`` is the one chosen on validation for this world; tables and predictions are made with it. The
    metrics themselves sweep over every bias.
    """

    measured: MeasuredSplit
    metrics: Metrics
    intervals: dict[str, Interval | None]
    top_k: dict[int, dict[str, float | None]]  # k -> all, seen, unseen -> percent
    top_k_intervals: dict[int, dict[str, Interval | None]]
    bias: float
    feasibility: FeasibilityFit | None = None

    @cached_property
    def pairs(self) -> list[BreakdownRow]:
        return per_pair(self.measured.summary, self.measured.space, self.bias)

    @cached_property
    def states(self) -> list[BreakdownRow]:
        return per_primitive(self.measured.summary, self.measured.space, "state", self.bias)

    @cached_property
    def objects(self) -> list[BreakdownRow]:
        return per_primitive(self.measured.summary, self.measured.space, "object", self.bias)

    def hardest(self, count: int = 10) -> list[BreakdownRow]:
        """The unseen pairs with the lowest accuracy."""
        return hardest_unseen(self.pairs, count)

    def to_json(self) -> dict[str, Any]:
        return {
            **self.metrics.to_json(),
            "undefined": self.metrics.undefined(),
            "intervals": {name: interval_json(span) for name, span in self.intervals.items()},
            "top_k": {str(k): shares for k, shares in self.top_k.items()},
            "top_k_intervals": {
                str(k): {group: interval_json(span) for group, span in spans.items()}
                for k, spans in self.top_k_intervals.items()
            },
            "validation_bias": self.bias,
            "feasibility": self.feasibility.to_json() if self.feasibility else None,
            "confidence": confidence_json(self.measured.confidence) if self.measured.confidence else None,
            "hardest_unseen": [row.to_json() for row in self.hardest()],
            "pairs": [row.to_json() for row in self.pairs],
            "states": [row.to_json() for row in self.states],
            "objects": [row.to_json() for row in self.objects],
        }


def confidence_json(measured: MeasuredConfidence) -> dict[str, Any]:
    """Calibration errors in percentage points, coverage and precision in percent."""
    return {
        "temperatures": asdict(measured.confidence.temperatures),
        "ece": {
            level: {"before": before, "after": after} for level, (before, after) in measured.errors.items()
        },
        "thresholds": [
            {
                "precision": 100 * kept.precision,
                "verdict": kept.level,
                "threshold": kept.threshold.probability,
                "val": {
                    "coverage": 100 * kept.threshold.coverage,
                    "precision": percent(kept.threshold.precision),
                },
                "split": {
                    "coverage": 100 * kept.coverage,
                    "precision": percent(kept.measured),
                    "interval": [100 * side for side in kept.interval] if kept.interval else None,
                },
            }
            for kept in measured.kept
        ],
    }


def percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


@dataclass(frozen=True)
class Result:
    """One evaluation; ``images`` names the rows of every summary."""

    dataset: str
    split: str
    protocol: SweepProtocol
    worlds: dict[str, WorldResult]
    images: Sequence[str]
    bootstrap_samples: int
    seed: int
    calibration: Calibration | None = None  # fitted after training; None for a score file

    @property
    def calibration_images(self) -> str:
        """Which images the thresholds were found on, as a heading says it."""
        crossed = self.calibration is not None and self.calibration.chosen_on == "cross-validation"
        return "cross-validation" if crossed else "val"

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "refiner.eval/1",
            "dataset": self.dataset,
            "split": self.split,
            "protocol": self.protocol,
            "bootstrap": {"samples": self.bootstrap_samples, "seed": self.seed, "level": 95},
            "calibration": self.calibration.to_json() if self.calibration else None,
            "worlds": {name: world.to_json() for name, world in self.worlds.items()},
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One object per image and world, for a JSON lines file."""
        for name, world in self.worlds.items():
            summary, space = world.measured.summary, world.measured.space
            found = world.measured.confidence
            sure = found.after.probability["pair"] if found else None
            for row in per_image(summary, space, self.images, world.bias, sure):
                yield {"world": name, **row}


def summarise_world(
    measured: MeasuredSplit,
    protocol: SweepProtocol,
    *,
    bias: float = 0.0,
    feasibility: FeasibilityFit | None = None,
    ks: Sequence[int] = DEFAULT_TOP_K,
    bootstrap_samples: int = BOOTSTRAP_SAMPLES,
    seed: int = 0,
) -> WorldResult:
    """Every number of one world. Nothing is chosen here: ``bias`` comes from validation, or is 0."""
    summary, space = measured.summary, measured.space
    return WorldResult(
        measured,
        sweep(summary, space, protocol),
        intervals(resample(summary, space, protocol, bootstrap_samples=bootstrap_samples, seed=seed)),
        top_k(summary, ks),
        top_k_intervals(summary, ks, bootstrap_samples=bootstrap_samples, seed=seed),
        bias,
        feasibility,
    )
