"""Where a model is right and wrong: top-k, per pair, state and object, confusions, calibration.

Everything is counted at one bias, which must come from validation (or be 0): here nothing is chosen.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refiner_cli.data.labels import BoolArray, IntArray, LabelSpace
from refiner_cli.evaluation.metrics.score_summary import FloatArray, ScoreSummary
from refiner_cli.files import atomic_file

PrimitiveKind = Literal["state", "object"]


def top_k(summary: ScoreSummary, ks: Sequence[int] = (1, 3, 5, 10)) -> dict[int, dict[str, float | None]]:
    """Share of images, in percent, whose truth is among the k best candidates, without any bias.

    Candidates with the truth's own score count as better. Keys of each entry: all, seen, unseen;
    the share of no images is None.
    """
    rank = np.where(
        np.isfinite(summary.truth_score), summary.seen_ahead + summary.unseen_ahead, np.iinfo(np.int64).max
    )
    groups = {
        "all": np.ones(len(summary), np.bool_),
        "seen": summary.truth_seen,
        "unseen": ~summary.truth_seen,
    }
    return {k: {name: accuracy_percent(rank[group] < k) for name, group in groups.items()} for k in ks}


@dataclass(frozen=True)
class BreakdownRow:
    """One pair, state or object: how many of its images were right, and the most frequent mistake."""

    name: str
    seen: bool | None  # None for states and objects
    images: int
    accuracy: float  # percent of images with this pair (state, object) recognised
    margin: float | None  # mean of the truth's biased score minus the prediction's; None: it never competes
    mistaken_for: str  # the most frequent wrong answer, "" if there is none
    mistaken: int  # how often

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


def per_pair(summary: ScoreSummary, space: LabelSpace, bias: float = 0.0) -> list[BreakdownRow]:
    """A row for each pair with images, in candidate order."""
    names = [" ".join(pair) for pair in space.pairs]
    right, margin = summary.correct(bias), margins(summary, bias)
    return _breakdown_rows(names, summary.truth, summary.predictions(bias), right, margin, space.seen)


def per_primitive(
    summary: ScoreSummary, space: LabelSpace, kind: PrimitiveKind, bias: float = 0.0
) -> list[BreakdownRow]:
    """A row for each state (object) with images; right where the predicted pair has it."""
    names, index = primitive_labels(space, kind)
    truth, predicted = index[summary.truth], index[summary.predictions(bias)]
    return _breakdown_rows(list(names), truth, predicted, truth == predicted, margins(summary, bias), None)


def hardest_unseen(rows: Sequence[BreakdownRow], count: int = 20) -> list[BreakdownRow]:
    """The unseen pairs with the lowest accuracy, then the lowest margin."""
    return sorted((row for row in rows if row.seen is False), key=difficulty)[:count]


def difficulty(row: BreakdownRow) -> tuple[float, float]:
    """Sort key: the lowest accuracy first, then the lowest margin."""
    return row.accuracy, -np.inf if row.margin is None else row.margin


def margins(summary: ScoreSummary, bias: float = 0.0) -> FloatArray:
    """N float64: the truth's biased score minus that of the prediction; 0 where they are the same."""
    score = summary.truth_score.astype(np.float64) + np.where(summary.truth_seen, 0.0, bias)
    margin: FloatArray = score - np.maximum(
        summary.best_seen.astype(np.float64), summary.best_unseen.astype(np.float64) + bias
    )
    return margin


def _breakdown_rows(
    names: list[str],
    truth: IntArray,
    predicted: IntArray,
    right: BoolArray,
    margin: FloatArray,
    seen: BoolArray | None,
) -> list[BreakdownRow]:
    order = np.argsort(truth, kind="stable")
    starts = np.flatnonzero(np.diff(truth[order], prepend=-1))
    rows = []
    for images in np.split(order, starts[1:]):
        label = int(truth[images[0]])
        wrong = Counter(predicted[images[~right[images]]].tolist())
        wrong.pop(label, None)  # a tie that was counted as wrong is not another answer
        other, times = min(wrong.items(), key=lambda item: (-item[1], item[0])) if wrong else (-1, 0)
        finite = margin[images][np.isfinite(margin[images])]
        rows.append(
            BreakdownRow(
                name=names[label],
                seen=None if seen is None else bool(seen[label]),
                images=len(images),
                accuracy=100.0 * np.count_nonzero(right[images]) / len(images),
                margin=float(finite.mean()) if len(finite) else None,
                mistaken_for=names[other] if wrong else "",
                mistaken=times,
            )
        )
    return rows


@dataclass(frozen=True)
class Confusion:
    """True (rows) against predicted (columns), K most confused states or objects, in percent of a row."""

    names: tuple[str, ...]
    percent: FloatArray  # K x K
    images: IntArray  # K, of each row


def confusion(
    summary: ScoreSummary, space: LabelSpace, kind: PrimitiveKind, bias: float = 0.0, *, limit: int = 24
) -> Confusion:
    """The ``limit`` states (objects) involved in the most mistakes, in index order."""
    names, index = primitive_labels(space, kind)
    truth, predicted = index[summary.truth], index[summary.predictions(bias)]
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (truth, predicted), 1)
    mistakes = counts - np.diag(np.diag(counts))
    busiest = np.argsort(-(mistakes.sum(0) + mistakes.sum(1)), kind="stable")
    present = counts.sum(1) + counts.sum(0) > 0
    chosen = np.sort(busiest[present[busiest]][:limit])
    images = counts.sum(1)[chosen]
    share = 100.0 * counts[np.ix_(chosen, chosen)] / np.maximum(images, 1)[:, None]
    return Confusion(tuple(names[i] for i in chosen), share, images)


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in equal bins, in percent, and the expected calibration error."""

    confidence: FloatArray  # bins; mean of each, nan where empty
    accuracy: FloatArray  # bins; nan where empty
    images: IntArray  # bins
    error: float


def reliability(summary: ScoreSummary, bias: float = 0.0, *, bins: int = 10) -> Reliability:
    """How well the softmax over all candidates matches the accuracy at this bias."""
    return bin_confidences(confidences(summary, bias), summary.correct(bias), bins=bins)


def bin_confidences(confidence: FloatArray, right: BoolArray, *, bins: int = 10) -> Reliability:
    """Confidences ``N`` in 0..1 against whether they were right; the error weighs each bin by its images."""
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    images = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # an empty bin has no mean
        mean = 100 * np.bincount(place, confidence, bins) / images
        accuracy = 100 * np.bincount(place, right.astype(np.float64), bins) / images
    error = float(np.nansum(np.abs(mean - accuracy) * images) / len(confidence))
    return Reliability(mean, accuracy, images, error)


def confidences(summary: ScoreSummary, bias: float = 0.0) -> FloatArray:
    """N float64 in 0..1: softmax probability of the prediction among all candidates."""
    unseen = summary.best_unseen.astype(np.float64) + bias
    mass = np.logaddexp(summary.seen_mass.astype(np.float64), summary.unseen_mass + bias)
    share: FloatArray = np.clip(np.exp(np.maximum(summary.best_seen, unseen) - mass), 0, 1)
    return share


def per_image(
    summary: ScoreSummary,
    space: LabelSpace,
    images: Sequence[str],
    bias: float = 0.0,
    probability: FloatArray | None = None,
) -> Iterator[dict[str, Any]]:
    """One JSON object per image: truth, prediction, scores, rank.

    Args:
        images: the names of the ``N`` images.
        probability: ``N``, of the predictions, where temperatures were fitted; None: softmax of the scores.
    """
    predicted, right = summary.predictions(bias), summary.correct(bias)
    confidence = confidences(summary, bias) if probability is None else probability
    competes = np.isfinite(summary.truth_score)
    for i, name in enumerate(images):
        yield {
            "image": name,
            "truth": list(space.pairs[summary.truth[i]]),
            "seen": bool(summary.truth_seen[i]),
            "predicted": list(space.pairs[predicted[i]]),
            "correct": bool(right[i]),
            "probability": float(confidence[i]),
            "rank": int(summary.seen_ahead[i] + summary.unseen_ahead[i]) + 1 if competes[i] else None,
            "score": _finite_score(summary.truth_score[i]),
            "best_seen": _candidate(space, summary.best_seen_index[i], summary.best_seen[i]),
            "best_unseen": _candidate(space, summary.best_unseen_index[i], summary.best_unseen[i]),
        }


def write_per_image(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Write JSON lines; the file appears only when it is complete."""
    with atomic_file(file) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def primitive_labels(space: LabelSpace, kind: PrimitiveKind) -> tuple[tuple[str, ...], IntArray]:
    """Names of the states (objects), and P int64: which one each pair has."""
    return (space.states, space.pair_state) if kind == "state" else (space.objects, space.pair_object)


def accuracy_percent(right: BoolArray) -> float | None:
    """Share of right images, in percent; None of no images."""
    return 100.0 * np.count_nonzero(right) / len(right) if len(right) else None


def _candidate(space: LabelSpace, index: np.int64, score: np.float32) -> dict[str, Any] | None:
    return None if index < 0 else {"pair": list(space.pairs[index]), "score": float(score)}


def _finite_score(score: np.float32) -> float | None:
    return float(score) if np.isfinite(score) else None
