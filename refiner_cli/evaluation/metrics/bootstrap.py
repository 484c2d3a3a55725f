"""How certain a number is: seeded bootstrap over images.

N images are drawn with replacement and the complete sweep runs again. Two summaries of the same images
with the same seed are resampled alike, so differences between their samples are paired.

A resampled set may lack images of seen or of unseen pairs, and a metric is undefined there (NaN).
Intervals are taken over the samples where it is defined; without any there is no interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np

from refiner_cli.data.labels import BoolArray, IntArray, LabelSpace, Pair
from refiner_cli.errors import ScoresError
from refiner_cli.evaluation.metrics.bias_sweep import Metrics, sweep
from refiner_cli.evaluation.metrics.breakdown import top_k
from refiner_cli.evaluation.metrics.confidence import MeasuredConfidence
from refiner_cli.evaluation.metrics.score_summary import FloatArray, ScoreSummary
from refiner_cli.evaluation.metrics.seen_unseen import SweepProtocol
from refiner_cli.metric_names import METRIC_NAMES

BOOTSTRAP_SAMPLES = 1000
LEVEL = 0.95
Samples = dict[str, FloatArray]  # metric -> one value per bootstrap sample, NaN where undefined


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of the bootstrap samples, in percent (or percentage points)."""

    low: float
    high: float

    @classmethod
    def of(cls, samples: FloatArray) -> Interval | None:
        """The interval of the samples that are not NaN; None without any."""
        defined = samples[~np.isnan(samples)]
        if not len(defined):
            return None
        low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(float(low), float(high))

    def to_json(self) -> list[float]:
        return [self.low, self.high]


def interval_json(interval: Interval | None) -> list[float] | None:
    return interval.to_json() if interval else None


def resample(
    summary: ScoreSummary,
    space: LabelSpace,
    protocol: SweepProtocol = "exact",
    *,
    bootstrap_samples: int = BOOTSTRAP_SAMPLES,
    seed: int = 0,
    clusters: IntArray | None = None,
) -> Samples:
    """Every metric, and the bias of HM, on resampled sets of images.

    Args:
        clusters: ``N``, for each image the cluster that is drawn as a whole; None: images are drawn.
    """
    names = (*METRIC_NAMES, "bias")
    rows: list[list[float]] = []
    for drawn in bootstrap_rows(len(summary), clusters, bootstrap_samples, seed):
        metrics = sweep(summary.select(drawn), space, protocol)
        rows.append([nan_if_none(getattr(metrics, name)) for name in names])
    return dict(zip(names, np.array(rows).T, strict=True))


def nan_if_none(value: float | None) -> float:
    return np.nan if value is None else value


def bootstrap_indices(images: int, bootstrap_samples: int, seed: int) -> Iterator[IntArray]:
    """The images of each sample; the same ones whenever the three numbers are the same."""
    rng = np.random.default_rng(seed)
    for _ in range(bootstrap_samples):
        yield rng.integers(images, size=images)


def bootstrap_rows(
    images: int, clusters: IntArray | None, bootstrap_samples: int, seed: int
) -> Iterator[IntArray]:
    """The images of each sample; where clusters ``N`` are given, each is drawn with all its images."""
    if clusters is None:
        yield from bootstrap_indices(images, bootstrap_samples, seed)
        return
    names, cluster = np.unique(clusters, return_inverse=True)
    for drawn in bootstrap_indices(len(names), bootstrap_samples, seed):
        yield np.repeat(np.arange(images), np.bincount(drawn, minlength=len(names))[cluster])


def top_k_intervals(
    summary: ScoreSummary,
    ks: Sequence[int],
    *,
    bootstrap_samples: int = BOOTSTRAP_SAMPLES,
    seed: int = 0,
) -> dict[int, dict[str, Interval | None]]:
    """95 % interval of every share that :func:`~refiner_cli.evaluation.metrics.breakdown.top_k` gives."""
    samples = [
        top_k(summary.select(images), ks)
        for images in bootstrap_indices(len(summary), bootstrap_samples, seed)
    ]
    return {
        k: {
            group: Interval.of(np.array([nan_if_none(shares[k][group]) for shares in samples]))
            for group in samples[0][k]
        }
        for k in ks
    }


def intervals(samples: Samples) -> dict[str, Interval | None]:
    """95 % interval of every metric that was sampled."""
    return {name: Interval.of(values) for name, values in samples.items()}


@dataclass(frozen=True)
class Difference:
    """Second minus first, in percentage points, with its interval; both None where undefined."""

    value: float | None
    interval: Interval | None

    @property
    def sure(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and (self.interval.low > 0 or self.interval.high < 0)

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "interval": interval_json(self.interval), "sure": self.sure}


@dataclass(frozen=True)
class MeasuredSplit:
    """One method on one split in one world: the summary of its scores over its candidates."""

    summary: ScoreSummary
    space: LabelSpace
    confidence: MeasuredConfidence | None = None  # where it was asked for
    allowed: BoolArray | None = None  # P, of a score file: the pairs that may compete; None: all

    @property
    def candidates(self) -> frozenset[Pair]:
        """The pairs that compete."""
        pairs = self.space.pairs
        return frozenset(pairs if self.allowed is None else compress(pairs, self.allowed))


def differences(
    first: MeasuredSplit,
    second: MeasuredSplit,
    protocol: SweepProtocol = "exact",
    *,
    bootstrap_samples: int = BOOTSTRAP_SAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Paired bootstrap of ``second - first`` for every metric.

    Raises ScoresError unless both hold the same images in the same order.
    """
    sides = (first, second)
    if len(first.summary) != len(second.summary):
        raise ScoresError(f"One side has {len(first.summary)} images, the other {len(second.summary)}.")
    truths = [[side.space.pairs[t] for t in side.summary.truth] for side in sides]
    if truths[0] != truths[1]:
        row = next(i for i, (a, b) in enumerate(zip(*truths, strict=True)) if a != b)
        raise ScoresError(
            f"Image {row} is {truths[0][row]} on one side and {truths[1][row]} on the other.",
            hint="Only results on the same images in the same order can be compared.",
        )
    before, after = (sweep(side.summary, side.space, protocol) for side in sides)
    before_samples, after_samples = (
        resample(side.summary, side.space, protocol, bootstrap_samples=bootstrap_samples, seed=seed)
        for side in sides
    )
    return {
        name: Difference(
            metric_difference(before, after, name), Interval.of(after_samples[name] - before_samples[name])
        )
        for name in METRIC_NAMES
    }


def metric_difference(before: Metrics, after: Metrics, name: str) -> float | None:
    """``after - before``; None where the metric is undefined on either side.

    Seen pairs may differ between methods, and with them what is defined.
    """
    values = getattr(before, name), getattr(after, name)
    return None if None in values else values[1] - values[0]
