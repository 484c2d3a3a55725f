"""The published protocol with its quirks, bit by bit.

Biases are float32, taken from about 20 of the unseen images that are right at a bias of 1000; of equal
float32 scores the candidate with the lowest index wins. Kept for comparison with printed numbers.
"""

from __future__ import annotations

import numpy as np

from refiner_cli.data.labels import BoolArray, IntArray
from refiner_cli.evaluation.metrics.score_summary import ScoreSummary
from refiner_cli.evaluation.metrics.seen_unseen import SeenUnseenCurve

MAX_BIAS = np.float32(1e3)
MARGIN = np.float32(1e-4)
SWEEP_POINTS = 20


def legacy_curve(summary: ScoreSummary) -> SeenUnseenCurve:
    """The published sample of operating points; the last one is that of the largest bias."""
    seen = summary.truth_seen
    usable = ~seen & legacy_correct(summary, MAX_BIAS) & np.isfinite(summary.best_train)
    gaps = np.sort((summary.best_train[usable] - summary.truth_score[usable]) - MARGIN)  # float32
    biases = np.append(gaps[:: max(len(gaps) // SWEEP_POINTS, 1)], MAX_BIAS)
    correct = [legacy_correct(summary, bias) for bias in biases]
    return SeenUnseenCurve(
        bias=biases.astype(np.float64),
        seen_correct=np.array([np.count_nonzero(right[seen]) for right in correct]),
        unseen_correct=np.array([np.count_nonzero(right[~seen]) for right in correct]),
        n_seen=int(np.count_nonzero(seen)),
        n_unseen=int(np.count_nonzero(~seen)),
        protocol="legacy",
    )


def legacy_correct(summary: ScoreSummary, bias: np.float32) -> BoolArray:
    """N bool: whether the first of the highest scores is the truth's after adding a bias in float32.

    Rounding can make different scores equal, but never swaps two, so maxima are enough: the truth must reach
    the best score, and nothing with a lower index may reach it too.
    """
    unseen, before = summary.best_unseen + bias, summary.unseen_before + bias
    score = np.where(summary.truth_seen, summary.truth_score, summary.truth_score + bias)
    beats_unseen = (unseen <= score) & (before < score)
    first_seen = np.where(
        summary.truth_seen, summary.best_seen_index >= summary.truth, summary.best_seen_index > summary.truth
    )
    beats_seen = (summary.best_seen < score) | ((summary.best_seen == score) & first_seen)
    right: BoolArray = np.isfinite(summary.truth_score) & beats_unseen & beats_seen
    return right


def legacy_predictions(summary: ScoreSummary) -> IntArray:
    """N int64: the unbiased prediction; of equals the one with the lowest index."""
    tie = (summary.best_unseen == summary.best_seen) & (summary.best_unseen_index < summary.best_seen_index)
    return np.where(
        (summary.best_unseen > summary.best_seen) | tie, summary.best_unseen_index, summary.best_seen_index
    )
