"""How sure a number is: bootstrap over images, seeded.

N images are drawn with replacement and the whole sweep runs again. Two digests of the same images
with the same seed see the same draws, so differences between their samples are paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refiner_cli.data.labels import IntArray, LabelSpace
from refiner_cli.errors import ScoresError
from refiner_cli.evaluation.metrics.bias_sweep import FloatArray, Protocol, ScoreSummary, sweep
from refiner_cli.evaluation.metrics.breakdown import top_k

METRIC_NAMES = ("S", "U", "HM", "AUC", "state_acc", "object_acc")
BOOTSTRAP_SAMPLES = 1000
LEVEL = 0.95
Samples = dict[str, FloatArray]  # metric -> one value a draw


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of the draws, in percent (or percentage points)."""

    low: float
    high: float

    @classmethod
    def of(cls, samples: FloatArray) -> Interval:
        low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(float(low), float(high))

    def to_json(self) -> list[float]:
        return [self.low, self.high]


def resample(
    digest: ScoreSummary,
    space: LabelSpace,
    protocol: Protocol = "exact",
    *,
    draws: int = BOOTSTRAP_SAMPLES,
    seed: int = 0,
) -> Samples:
    """Every metric of :data:`NAMES`, and the bias of HM, on ``draws`` resampled sets of images."""
    names = (*METRIC_NAMES, "bias")
    rows: list[list[float]] = []
    for images in bootstrap_indices(len(digest), draws, seed):
        metrics = sweep(digest.select(images), space, protocol)
        rows.append([getattr(metrics, name) for name in names])
    return dict(zip(names, np.array(rows).T, strict=True))


def bootstrap_indices(images: int, draws: int, seed: int) -> Iterator[IntArray]:
    """The images of each draw; the same ones whenever the three numbers are the same."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield rng.integers(images, size=images)


def top_k_intervals(
    digest: ScoreSummary, ks: Sequence[int], *, draws: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> dict[int, dict[str, Interval]]:
    """95 % interval of every share that :func:`~refiner_cli.evaluation.metrics.breakdown.top_k` gives."""
    found = [top_k(digest.select(images), ks) for images in bootstrap_indices(len(digest), draws, seed)]
    return {
        k: {group: Interval.of(np.array([shares[k][group] for shares in found])) for group in found[0][k]}
        for k in ks
    }


def intervals(samples: Samples) -> dict[str, Interval]:
    """95 % interval of everything that was sampled."""
    return {name: Interval.of(values) for name, values in samples.items()}


@dataclass(frozen=True)
class Difference:
    """Second minus first, in percentage points; ``sure`` where the interval leaves zero out."""

    value: float
    interval: Interval

    @property
    def sure(self) -> bool:
        return self.interval.low > 0 or self.interval.high < 0

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "interval": self.interval.to_json(), "sure": self.sure}


@dataclass(frozen=True)
class MeasuredSplit:
    """One method on one split in one world: its digest over its candidates."""

    summary: ScoreSummary
    space: LabelSpace


def differences(
    first: MeasuredSplit,
    second: MeasuredSplit,
    protocol: Protocol = "exact",
    *,
    draws: int = BOOTSTRAP_SAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Paired bootstrap of ``second - first`` for every metric.

    Raises ScoresError unless both hold the same images in the same order.
    """
    if len(first.summary) != len(second.summary):
        raise ScoresError(f"One side has {len(first.summary)} images, the other {len(second.summary)}.")
    truths = [[side.space.pairs[t] for t in side.summary.truth] for side in (first, second)]
    if truths[0] != truths[1]:
        row = next(i for i, (a, b) in enumerate(zip(*truths, strict=True)) if a != b)
        raise ScoresError(
            f"Image {row} is {truths[0][row]} on one side and {truths[1][row]} on the other.",
            hint="Only results on the same images in the same order can be compared.",
        )
    samples = [resample(s.summary, s.space, protocol, draws=draws, seed=seed) for s in (first, second)]
    values = [sweep(s.summary, s.space, protocol) for s in (first, second)]
    return {
        name: Difference(
            getattr(values[1], name) - getattr(values[0], name),
            Interval.of(samples[1][name] - samples[0][name]),
        )
        for name in METRIC_NAMES
    }
