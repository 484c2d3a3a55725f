"""What an evaluation found, as values: numbers with intervals, tables, and how each choice was made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from refiner_cli.core.models.base import Calibration
from refiner_cli.evaluation.feasibility.fit import FeasibilityFit
from refiner_cli.evaluation.metrics.bias_sweep import Metrics, Protocol, sweep
from refiner_cli.evaluation.metrics.bootstrap import (
    BOOTSTRAP_SAMPLES,
    Interval,
    MeasuredSplit,
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

TOP = (1, 3, 5, 10)


@dataclass(frozen=True)
class WorldResult:
    """One split in one world.

    ``bias`` is the one that validation chose; tables and predictions are made with it. The metrics
    themselves sweep over every bias.
    """

    measured: MeasuredSplit
    metrics: Metrics
    intervals: dict[str, Interval]
    top_k: dict[int, dict[str, float]]  # k -> all, seen, unseen -> percent
    top_k_intervals: dict[int, dict[str, Interval]]
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
        """The unseen pairs that are recognised worst."""
        return hardest_unseen(self.pairs, count)

    def to_json(self) -> dict[str, Any]:
        return {
            **self.metrics.to_json(),
            "intervals": {name: found.to_json() for name, found in self.intervals.items()},
            "top_k": {str(k): shares for k, shares in self.top_k.items()},
            "top_k_intervals": {
                str(k): {group: span.to_json() for group, span in spans.items()}
                for k, spans in self.top_k_intervals.items()
            },
            "validation_bias": self.bias,
            "feasibility": self.feasibility.to_json() if self.feasibility else None,
            "hardest_unseen": [row.to_json() for row in self.hardest()],
            "pairs": [row.to_json() for row in self.pairs],
            "states": [row.to_json() for row in self.states],
            "objects": [row.to_json() for row in self.objects],
        }


@dataclass(frozen=True)
class Result:
    """One evaluation; ``images`` names the rows of every digest."""

    dataset: str
    split: str
    protocol: Protocol
    worlds: dict[str, WorldResult]
    images: Sequence[str]
    bootstrap_samples: int
    seed: int
    calibration: Calibration | None = None  # what training's validation chose; None for a score file

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "refiner.eval/1",
            "dataset": self.dataset,
            "split": self.split,
            "protocol": self.protocol,
            "bootstrap": {"draws": self.bootstrap_samples, "seed": self.seed, "level": 95},
            "calibration": self.calibration.to_json() if self.calibration else None,
            "worlds": {name: world.to_json() for name, world in self.worlds.items()},
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One object an image and world, for a JSON lines file."""
        for name, world in self.worlds.items():
            digest, space = world.measured.summary, world.measured.space
            for row in per_image(digest, space, self.images, world.bias):
                yield {"world": name, **row}


def summarise_world(
    measured: MeasuredSplit,
    protocol: Protocol,
    *,
    bias: float = 0.0,
    feasibility: FeasibilityFit | None = None,
    ks: Sequence[int] = TOP,
    draws: int = BOOTSTRAP_SAMPLES,
    seed: int = 0,
) -> WorldResult:
    """Every number of one world. Nothing is chosen here: ``bias`` comes from validation, or is 0."""
    digest, space = measured.summary, measured.space
    return WorldResult(
        measured,
        sweep(digest, space, protocol),
        intervals(resample(digest, space, protocol, draws=draws, seed=seed)),
        top_k(digest, ks),
        top_k_intervals(digest, ks, draws=draws, seed=seed),
        bias,
        feasibility,
    )
