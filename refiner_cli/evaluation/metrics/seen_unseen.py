"""The seen-unseen curve: accuracy on images of seen pairs against accuracy on images of unseen pairs.

Points are kept as counts of correct images. A side without images has no accuracy: it is NaN, and so
is everything computed from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from refiner_cli.data.labels import BoolArray, IntArray
from refiner_cli.evaluation.metrics.score_summary import FloatArray

SweepProtocol = Literal["exact", "legacy"]


@dataclass(frozen=True)
class SeenUnseenCurve:
    """K operating points by rising bias.

    Attributes:
        bias: K, finite; of ``exact`` a bias inside the interval that gives the point.
        seen_correct, unseen_correct: K int64, correct images on each side.
        n_seen, n_unseen: images on each side.
    """

    bias: FloatArray
    seen_correct: IntArray
    unseen_correct: IntArray
    n_seen: int
    n_unseen: int
    protocol: SweepProtocol

    @property
    def seen(self) -> FloatArray:
        """K float64: accuracy on images of seen pairs, in percent; NaN without such images."""
        return ratio(100.0 * self.seen_correct, self.n_seen)

    @property
    def unseen(self) -> FloatArray:
        """K float64: accuracy on images of unseen pairs, in percent; NaN without such images."""
        return ratio(100.0 * self.unseen_correct, self.n_unseen)

    @property
    def is_defined(self) -> bool:
        """Whether both sides have images; otherwise there is no harmonic mean and no area."""
        return self.n_seen > 0 and self.n_unseen > 0

    @property
    def harmonic(self) -> FloatArray:
        """K float64: the harmonic mean at each point, in percent."""
        return harmonic_mean(self.seen, self.unseen)

    @property
    def best(self) -> int:
        """The first point with the best harmonic mean; 0 if that is undefined."""
        if self.protocol == "exact":
            return int(np.argmax(self.harmonic))
        # Rounding decides which of two equal means is the larger one, and published code rounds fractions.
        seen, unseen = ratio(self.seen_correct, self.n_seen), ratio(self.unseen_correct, self.n_unseen)
        return int(np.argmax(harmonic_mean(seen, unseen)))

    @property
    def best_bias(self) -> float | None:
        """The bias of that point; 0 if no bias gets anything right on both sides, None if undefined."""
        if not self.is_defined:
            return None
        best = self.best
        return float(self.bias[best]) if self.harmonic[best] > 0 or self.protocol == "legacy" else 0.0

    @property
    def area(self) -> float | None:
        """Area under seen accuracy as a function of unseen accuracy, in percent; None if undefined."""
        if not self.is_defined:
            return None
        width = np.diff(self.unseen)
        height = self.seen[1:] if self.protocol == "exact" else (self.seen[1:] + self.seen[:-1]) / 2
        return float(np.sum(width * height) / 100)


def step_curve(change: FloatArray, seen: BoolArray) -> SeenUnseenCurve:
    """The exact curve from the breakpoint of each image and whether its truth is seen, both N long."""
    lost = np.sort(change[seen & (change > -np.inf)])  # each takes one seen image away
    won = np.sort(change[~seen & (change < np.inf)])  # each adds one unseen image
    edges = np.unique(np.concatenate([lost, won]))
    edges = edges[np.isfinite(edges)]  # an image without a rival on the other side never changes
    low = np.concatenate([[-np.inf], edges])  # the intervals (low, high) between edges
    return SeenUnseenCurve(
        bias=bias_inside(edges),
        seen_correct=len(lost) - np.searchsorted(lost, low, side="right"),  # lost > low, hence >= high
        unseen_correct=np.searchsorted(won, low, side="right"),  # won <= low
        n_seen=int(np.count_nonzero(seen)),
        n_unseen=int(np.count_nonzero(~seen)),
        protocol="exact",
    )


def bias_inside(edges: FloatArray) -> FloatArray:
    """A finite bias inside each of the intervals that K - 1 rising edges divide the real line into, K."""
    if not len(edges):
        return np.zeros(1)
    margin = 1.0 + np.abs(edges[[0, -1]])  # large enough to survive rounding
    return np.concatenate([[edges[0] - margin[0]], (edges[1:] + edges[:-1]) / 2, [edges[-1] + margin[1]]])


def harmonic_mean(seen: FloatArray, unseen: FloatArray) -> FloatArray:
    """Elementwise ``2 s u / (s + u)``; 0 where both are 0, NaN where one is NaN."""
    total = seen + unseen
    return np.divide(2 * seen * unseen, total, out=np.where(np.isnan(total), np.nan, 0.0), where=total > 0)


def ratio(counts: IntArray | npt.NDArray[np.floating], total: int) -> FloatArray:
    """Counts divided by a total; NaN if that is 0."""
    return counts / total if total else np.full(counts.shape, np.nan)
