"""Small random evaluation problems, and N x P reference evaluators written from the protocol's text."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from refiner_cli.data.labels import BoolArray, IntArray, LabelSpace
from refiner_cli.evaluation.metrics.score_summary import ScoreSummary
from refiner_cli.evaluation.metrics.streaming import ScoreStream


@dataclass(frozen=True)
class Case:
    space: LabelSpace
    scores: npt.NDArray[np.float32]  # N x P
    truth: IntArray  # N
    allowed: BoolArray  # P

    def summary(self, batch: int = 32) -> ScoreSummary:
        stream = ScoreStream(self.space, self.allowed)
        for start in range(0, len(self.truth), batch):
            stream.update(self.scores[start : start + batch], self.truth[start : start + batch])
        return stream.summary()


def make_case(
    seed: int, *, images: int = 40, states: int = 3, objects: int = 4, seen: float = 0.5, ties: bool = False,
    scale: float = 1.0, allowed: float = 1.0, skill: float = 1.0, keep: float = 1.0, only: str = "",
) -> Case:  # fmt: skip
    """A random case; every argument is a size, a share, or a switch for one oddity."""
    rng = np.random.default_rng(seed)
    pairs = list(product([f"s{i}" for i in range(states)], [f"o{i}" for i in range(objects)]))
    kept = [pair for pair in pairs if rng.random() < keep] or pairs[:1]
    space = LabelSpace(
        tuple(f"s{i}" for i in range(states)),
        tuple(f"o{i}" for i in range(objects)),
        tuple(kept),
        frozenset(pair for pair in pairs if rng.random() < seen),
    )
    count = len(space.pairs)
    pool = np.flatnonzero(space.seen if only == "seen" else ~space.seen) if only else np.arange(count)
    truth = rng.choice(pool if len(pool) else np.arange(count), images)
    if ties:
        scores = rng.integers(-3, 4, (images, count)) / 4
        scores[np.arange(images), truth] += np.round(skill * 2) / 4
    else:
        scores = rng.normal(size=(images, count))
        scores[np.arange(images), truth] += skill
        scores[:, space.seen] += 0.5
    mask = rng.random(count) < allowed
    mask[rng.integers(count)] = True
    return Case(space, (scale * scores).astype(np.float32), truth.astype(np.int64), mask)


CASES = st.builds(
    make_case,
    seed=st.integers(0, 2**32),
    images=st.integers(1, 90),
    states=st.integers(1, 4),
    objects=st.integers(1, 5),
    seen=st.sampled_from([0.2, 0.5, 0.8]),
    ties=st.booleans(),
    scale=st.sampled_from([1.0, -1.0, 100.0, 0.01]),
    allowed=st.sampled_from([0.6, 1.0]),
    skill=st.sampled_from([-4.0, 0.0, 1.0, 3.0]),
    keep=st.sampled_from([0.7, 1.0]),
    only=st.sampled_from(["", "", "seen", "unseen"]),
)


def published(case: Case) -> dict[str, float | None]:
    """The published evaluator over all N x P scores, in fractions; of equals the first wins."""
    scores, truth, seen = case.scores, case.truth, case.space.seen
    truth_seen = seen[truth]

    def top(bias: np.float32) -> IntArray:
        biased = scores + np.where(seen, np.float32(0), bias)
        return np.where(case.allowed, biased, np.float32(-1e10)).argmax(1)

    def accuracy(right: BoolArray) -> float:
        return float(right.mean()) if len(right) else 0.0

    def right(bias: np.float32) -> BoolArray:
        return (top(bias) == truth) & case.allowed[truth]

    rows = np.flatnonzero(~truth_seen & right(np.float32(1e3)))
    gaps = (
        scores[rows][:, seen].max(1) - scores[rows, truth[rows]] - np.float32(1e-4)
        if seen.any()
        else np.array([])
    )
    gaps = np.sort(gaps.astype(np.float32))
    biases = [*gaps[:: max(len(gaps) // 20, 1)], np.float32(1e3)]
    s = np.array([accuracy(right(b)[truth_seen]) for b in biases])
    u = np.array([accuracy(right(b)[~truth_seen]) for b in biases])
    harmonic = [2 * a * b / (a + b) if a + b else 0.0 for a, b in zip(s, u, strict=True)]
    unbiased = top(np.float32(0))
    return without_undefined(
        truth_seen,
        {
            "S": s.max(),
            "U": u.max(),
            "HM": max(harmonic),
            "AUC": sum((u[k + 1] - u[k]) * (s[k + 1] + s[k]) / 2 for k in range(len(biases) - 1)),
            "state_acc": accuracy(case.space.pair_state[unbiased] == case.space.pair_state[truth]),
            "object_acc": accuracy(case.space.pair_object[unbiased] == case.space.pair_object[truth]),
            "bias": float(biases[int(np.argmax(harmonic))]),
        },
    )


def scanned(case: Case) -> dict[str, float | None]:
    """All biases at which two candidates of an image swap, and one between each two, in fractions."""
    scores, truth = case.scores.astype(np.float64), case.truth
    seen, truth_seen = case.space.seen, case.space.seen[truth]
    images = np.arange(len(truth))

    def accuracies(bias: float) -> tuple[float, float]:
        biased = np.where(case.allowed, scores + bias * ~seen, -np.inf)
        own = biased[images, truth]
        rivals = biased.copy()
        rivals[images, truth] = -np.inf
        right = own > rivals.max(1)
        return (
            float(right[truth_seen].mean()) if truth_seen.any() else 0.0,
            float(right[~truth_seen].mean()) if (~truth_seen).any() else 0.0,
        )

    changes = np.unique(scores[:, seen][:, :, None] - scores[:, ~seen][:, None, :])
    if not len(changes):
        changes = np.zeros(1)
    between = np.concatenate([[changes[0] - 1], (changes[1:] + changes[:-1]) / 2, [changes[-1] + 1]])
    points = [accuracies(bias) for bias in np.sort(np.concatenate([changes, between]))]
    s, u = np.array(points).T
    harmonic = [2 * a * b / (a + b) if a + b else 0.0 for a, b in points]
    return without_undefined(
        truth_seen,
        {
            "S": s.max(),
            "U": u.max(),
            "HM": max(harmonic),
            "AUC": float(np.sum(np.diff(u) * (s[1:] + s[:-1]) / 2)),  # every move is parallel to an axis
        },
    )


def without_undefined(truth_seen: BoolArray, metrics: dict[str, float]) -> dict[str, float | None]:
    """None in place of every metric that needs images which do not exist."""
    undefined: set[str] = set()
    if not truth_seen.any():
        undefined |= {"S", "HM", "AUC", "bias"}
    if truth_seen.all():
        undefined |= {"S", "U", "HM", "AUC", "bias"} if "bias" in metrics else {"U", "HM", "AUC", "bias"}
    return {name: None if name in undefined else value for name, value in metrics.items()}
