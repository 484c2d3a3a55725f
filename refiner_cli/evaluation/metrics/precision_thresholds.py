"""From which probability on guesses keep a precision, surely.

Images of one pair are alike: a split of 44 pairs with 12 images each says less than 528 images of 528
pairs would. So images count by Kish's design effect, ``1 + rho (m - 1)``, with ``m`` images a pair and
``rho`` the correlation of being right within a pair. An image that several models of a cross-validation
were measured on counts once.

Shapes: ``N`` rows, one of each image, or several of one that several models were measured on.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from refiner_cli.data.labels import BoolArray, IntArray
from refiner_cli.evaluation.metrics.score_summary import FloatArray

SURE = 0.95  # confidence that a precision is kept


def wilson_interval(
    share: FloatArray, counted: FloatArray, confidence: float
) -> tuple[FloatArray, FloatArray]:
    """Wilson's score intervals of shares among so many independent images, elementwise.

    Each side is passed with probability ``(1 - confidence) / 2``.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    spread = z * z / counted
    middle = share + spread / 2
    reach = z * np.sqrt(share * (1 - share) / counted + spread / (4 * counted))
    low, high = (middle - reach) / (1 + spread), (middle + reach) / (1 + spread)
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


def pair_correlation(right: BoolArray, pairs: IntArray) -> float:
    """``rho`` in 0..1: how much alike images of one pair are in being right; both arguments ``N``.

    From the variance of a share over pairs, divided by that of as many independent images. A single pair
    shows none of it, and is counted as one image.
    """
    if not len(right):
        return 0.0
    share = right.mean()
    _, group = np.unique(pairs, return_inverse=True)
    sizes = np.bincount(group)
    excess = np.bincount(group, right - share)  # right images of each pair beyond the mean
    size = float((sizes**2).sum() / len(right))  # m
    if len(sizes) < 2:
        return 1.0
    if share in {0, 1} or size <= 1:
        return 0.0
    effect = (excess**2).sum() * len(sizes) / (len(sizes) - 1) / (len(right) * share * (1 - share))
    return float(np.clip((effect - 1) / (size - 1), 0, 1))


def counted_images(pairs: IntArray, correlation: float, images: IntArray | None = None) -> FloatArray:
    """As how many independent images the first 1, 2, ... N rows count.

    Args:
        pairs: ``N``, the true pair of each row.
        images: ``N``, which image it is of; None: another one each.
    """
    new = np.ones(len(pairs), np.bool_)  # rows of an image that was not there before
    if images is not None:
        new[:] = False
        new[np.unique(images, return_index=True)[1]] = True
    seen: dict[int, int] = {}
    added = np.zeros(len(pairs))  # to the sum of the squared sizes of all pairs
    for place in np.flatnonzero(new).tolist():
        pair = int(pairs[place])
        added[place] = 2 * seen.get(pair, 0) + 1
        seen[pair] = seen.get(pair, 0) + 1
    count = np.cumsum(new)
    return count / (1 + correlation * (np.cumsum(added) / count - 1))


def widest_threshold(
    probability: FloatArray,
    right: BoolArray,
    pairs: IntArray,
    precision: float,
    correlation: float,
    images: IntArray | None = None,
) -> float | None:
    """The lowest probability from which on guesses keep a precision, surely; None if none does.

    Args:
        images: as :func:`counted_images` takes them.
    """
    if not len(probability):
        return None
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    counted = counted_images(pairs[order], correlation, None if images is None else images[order])
    low, _ = wilson_interval(share, counted, 2 * SURE - 1)
    ends = np.append(ranked[1:] < ranked[:-1], True)  # equal probabilities are on one side of a threshold
    kept = np.flatnonzero(ends & (low >= precision))
    return float(ranked[kept[-1]]) if len(kept) else None
