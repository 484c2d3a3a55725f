"""The seen-unseen sweep: from one digest of N images to S, U, HM and AUC. NumPy only, O(N) memory.

A bias ``b`` is added to the score of every unseen pair. From minus to plus infinity it moves the
prediction of each image once at most, from its best seen to its best unseen candidate. So an image
whose truth is seen is right below one breakpoint, an image whose truth is unseen is right above one,
and two sorted lists of breakpoints say everything about every bias.

``exact``
    A *step curve*: seen accuracy against unseen accuracy, at every bias. AUC is the area under it,
    HM the largest harmonic mean on it. The reported bias is the middle of the (first) interval of
    biases that reach that HM.

    Ties: **a tie is never a win.** An image is right only where its truth scores strictly more than
    every other candidate, and its state (object) is right only if all candidates that share the best
    score have the true state (object). Where an image is lost and another one won at the same bias,
    the curve goes down before it goes right. Neither the order of the candidates nor the order of
    the images has any influence. Differences are taken in float64, where they are exact for float32
    scores of similar size.

``legacy``
    The published protocol with its quirks, bit by bit: biases in float32, taken from about 20 of the
    unseen images that are right at a bias of 1000, trapezoids between the points, and among equal
    float32 scores the candidate with the lowest index wins. Kept for comparison with printed numbers.

Every accuracy is in percent; that of no images is 0.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refiner_cli.data.labels import BoolArray, IntArray, LabelSpace

Protocol = Literal["exact", "legacy"]
FloatArray = npt.NDArray[np.float64]
ScoreArray = npt.NDArray[np.float32]

LEGACY_MAX_BIAS = np.float32(1e3)
LEGACY_MARGIN = np.float32(1e-4)
LEGACY_POINTS = 20


@dataclass(frozen=True)
class ScoreSummary:
    """What N images leave behind after their scores are gone; every field has length N.

    Candidates are the pairs that may compete. Among equal scores an index is the lowest one.

    Attributes:
        truth: index of the true pair.
        truth_seen: whether training saw the true pair.
        truth_score: score of the true pair; -inf where it may not compete.
        best_seen, best_seen_index: best score among seen candidates and its index; -inf, -1 if there is none.
        best_unseen, best_unseen_index: the same among unseen candidates.
        best_train: best score among all seen pairs, those that may not compete included (legacy reads it).
        unseen_before: best score among unseen candidates with an index below the truth's (legacy reads it).
        seen_ahead, unseen_ahead: number of seen and unseen candidates, the truth not counted, that score at
            least as much as the truth.
        state_tied, object_tied: whether a candidate with another state (object) shares the best score.
        seen_mass, unseen_mass: log of the sum of exp(score) over seen and unseen candidates.
    """

    truth: IntArray
    truth_seen: BoolArray
    truth_score: ScoreArray
    best_seen: ScoreArray
    best_seen_index: IntArray
    best_unseen: ScoreArray
    best_unseen_index: IntArray
    best_train: ScoreArray
    unseen_before: ScoreArray
    seen_ahead: IntArray
    unseen_ahead: IntArray
    state_tied: BoolArray
    object_tied: BoolArray
    seen_mass: ScoreArray
    unseen_mass: ScoreArray

    def __len__(self) -> int:
        return len(self.truth)

    def select(self, images: IntArray | BoolArray) -> ScoreSummary:
        """The digest of the chosen images, repeated ones as often as they are given."""
        return ScoreSummary(**{field.name: getattr(self, field.name)[images] for field in fields(self)})

    def predictions(self, bias: float = 0.0) -> IntArray:
        """N int64: the predicted pair of each image; the seen one where both sides are equal."""
        unseen = self.best_unseen.astype(np.float64) + bias > self.best_seen
        return np.where(unseen, self.best_unseen_index, self.best_seen_index)

    def breakpoints(self) -> FloatArray:
        """N float64: the bias at which each image changes between right and wrong.

        Right below it if the truth is seen (-inf: never right), above it if the truth is unseen (inf: never).
        """
        score = self.truth_score.astype(np.float64)
        with np.errstate(invalid="ignore"):  # -inf minus -inf, where the truth may not compete
            seen = np.where(self.seen_ahead == 0, score - self.best_unseen, -np.inf)
            unseen = np.where(self.unseen_ahead == 0, self.best_seen - score, np.inf)
        competes = np.isfinite(score)
        return np.where(
            self.truth_seen, np.where(competes, seen, -np.inf), np.where(competes, unseen, np.inf)
        )

    def correct(self, bias: float = 0.0) -> BoolArray:
        """N bool: whether the truth beats every other candidate at this bias."""
        return np.where(self.truth_seen, bias < self.breakpoints(), bias > self.breakpoints())


@dataclass(frozen=True)
class Curve:
    """K operating points by rising bias: accuracy on seen and on unseen images, in percent.

    ``bias`` lies inside the interval that gives the point; the first and last of ``exact`` are -inf and inf.
    """

    bias: FloatArray
    seen: FloatArray
    unseen: FloatArray
    protocol: Protocol

    @property
    def harmonic(self) -> FloatArray:
        """K float64: the harmonic mean at each point, in percent."""
        return harmonic_mean(self.seen, self.unseen)

    @property
    def best(self) -> int:
        """The (first) point with the best harmonic mean."""
        return int(np.argmax(self.harmonic))

    @property
    def best_bias(self) -> float:
        """The bias of that point; 0 if no bias gets anything right on both sides."""
        best = self.best
        return float(self.bias[best]) if self.harmonic[best] > 0 or self.protocol == "legacy" else 0.0

    @property
    def area(self) -> float:
        """Area under seen accuracy as a function of unseen accuracy, in percent."""
        width = np.diff(self.unseen)
        height = self.seen[1:] if self.protocol == "exact" else (self.seen[1:] + self.seen[:-1]) / 2
        return float(np.sum(width * height) / 100)


@dataclass(frozen=True)
class Metrics:
    """One table row: S, U, HM, AUC, state and object accuracy in percent, the bias of HM, image counts.

    ``ties`` counts images whose best score is shared by several candidates: more than a few mean
    that scores were rounded (half precision) before they came here.
    """

    S: float
    U: float
    HM: float
    AUC: float
    state_acc: float
    object_acc: float
    bias: float
    n_seen: int
    n_unseen: int
    ties: int = 0

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def harmonic_mean(seen: FloatArray, unseen: FloatArray) -> FloatArray:
    """Elementwise ``2 s u / (s + u)``, and 0 where both are 0."""
    total = seen + unseen
    return np.divide(2 * seen * unseen, total, out=np.zeros_like(total), where=total > 0)


def sweep(digest: ScoreSummary, space: LabelSpace, protocol: Protocol = "exact") -> Metrics:
    """All scalar metrics of one split in one world.

    Args:
        digest: N images, as a ``ScoreStream`` over ``space`` gives it.
        space: the candidates that the digest's indices point into.
        protocol: see the module's text.
    """
    points = curve(digest, protocol)
    top = digest.predictions() if protocol == "exact" else _legacy_top(digest)
    state = space.pair_state[top] == space.pair_state[digest.truth]
    obj = space.pair_object[top] == space.pair_object[digest.truth]
    if protocol == "exact":
        state, obj = state & ~digest.state_tied, obj & ~digest.object_tied
    return Metrics(
        S=float(points.seen.max()),
        U=float(points.unseen.max()),
        HM=float(points.harmonic.max()),
        AUC=points.area,
        state_acc=_percent(state),
        object_acc=_percent(obj),
        bias=points.best_bias,
        n_seen=int(np.count_nonzero(digest.truth_seen)),
        n_unseen=int(np.count_nonzero(~digest.truth_seen)),
        ties=int(np.count_nonzero(digest.state_tied | digest.object_tied)),
    )


def curve(digest: ScoreSummary, protocol: Protocol = "exact") -> Curve:
    """The seen-unseen curve: every operating point (exact), or the published sample of them (legacy)."""
    if protocol == "exact":
        return step_curve(digest.breakpoints(), digest.truth_seen)
    return _legacy_curve(digest)


def step_curve(change: FloatArray, seen: BoolArray) -> Curve:
    """The exact curve from the breakpoint of each image and whether its truth is seen, both N long."""
    lost = np.sort(change[seen & (change > -np.inf)])  # each takes one seen image away
    won = np.sort(change[~seen & (change < np.inf)])  # each adds one unseen image
    edges = np.unique(np.concatenate([lost, won]))
    edges = edges[np.isfinite(edges)]  # an image with nothing to lose to never changes
    low = np.concatenate([[-np.inf], edges])  # the intervals (low, high) between edges
    high = np.concatenate([edges, [np.inf]])
    right_seen = len(lost) - np.searchsorted(lost, low, side="right")  # lost > low, hence >= high
    right_unseen = np.searchsorted(won, low, side="right")  # won <= low
    with np.errstate(invalid="ignore"):  # -inf plus inf, where nothing ever changes
        bias = (low + high) / 2
    return Curve(
        bias=np.nan_to_num(bias, nan=0.0, posinf=np.inf, neginf=-np.inf),
        seen=100.0 * right_seen / max(int(np.count_nonzero(seen)), 1),
        unseen=100.0 * right_unseen / max(int(np.count_nonzero(~seen)), 1),
        protocol="exact",
    )


def _legacy_curve(digest: ScoreSummary) -> Curve:
    seen = digest.truth_seen
    usable = ~seen & _legacy_correct(digest, LEGACY_MAX_BIAS) & np.isfinite(digest.best_train)
    gaps = np.sort((digest.best_train[usable] - digest.truth_score[usable]) - LEGACY_MARGIN)  # float32
    biases = np.append(gaps[:: max(len(gaps) // LEGACY_POINTS, 1)], LEGACY_MAX_BIAS)
    correct = [_legacy_correct(digest, bias) for bias in biases]
    return Curve(
        bias=biases.astype(np.float64),
        seen=np.array([_percent(right[seen]) for right in correct]),
        unseen=np.array([_percent(right[~seen]) for right in correct]),
        protocol="legacy",
    )


def _legacy_correct(digest: ScoreSummary, bias: np.float32) -> BoolArray:
    """N bool: whether the first of the highest scores is the truth's after the float32 addition of a bias.

    Rounding can make different scores equal, but never swaps two, so maxima are enough: the truth must reach
    the best score, and nothing with a lower index may reach it too.
    """
    unseen, before = digest.best_unseen + bias, digest.unseen_before + bias
    score = np.where(digest.truth_seen, digest.truth_score, digest.truth_score + bias)
    beats_unseen = (unseen <= score) & (before < score)
    first_seen = np.where(
        digest.truth_seen, digest.best_seen_index >= digest.truth, digest.best_seen_index > digest.truth
    )
    beats_seen = (digest.best_seen < score) | ((digest.best_seen == score) & first_seen)
    right: BoolArray = np.isfinite(digest.truth_score) & beats_unseen & beats_seen
    return right


def _legacy_top(digest: ScoreSummary) -> IntArray:
    """N int64: the unbiased prediction; of equals the one with the lowest index."""
    tie = (digest.best_unseen == digest.best_seen) & (digest.best_unseen_index < digest.best_seen_index)
    return np.where(
        (digest.best_unseen > digest.best_seen) | tie, digest.best_unseen_index, digest.best_seen_index
    )


def _percent(right: BoolArray) -> float:
    return 100.0 * np.count_nonzero(right) / max(len(right), 1)
