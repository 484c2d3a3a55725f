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
from refiner_cli.evaluation.metrics.bias_sweep import FloatArray, ScoreSummary
from refiner_cli.files import atomic_file

PrimitiveKind = Literal["state", "object"]


def top_k(digest: ScoreSummary, ks: Sequence[int] = (1, 3, 5, 10)) -> dict[int, dict[str, float]]:
    """Share of images, in percent, whose truth is among the k best candidates, without any bias.

    Candidates with the truth's own score count as better. Keys of each entry: all, seen, unseen.
    """
    rank = np.where(
        np.isfinite(digest.truth_score), digest.seen_ahead + digest.unseen_ahead, np.iinfo(np.int64).max
    )
    groups = {"all": np.ones(len(digest), np.bool_), "seen": digest.truth_seen, "unseen": ~digest.truth_seen}
    return {k: {name: percent(rank[group] < k) for name, group in groups.items()} for k in ks}


@dataclass(frozen=True)
class BreakdownRow:
    """One pair, state or object: how many of its images were right, and what it was taken for."""

    name: str
    seen: bool | None  # None for states and objects
    images: int
    accuracy: float  # percent of images with this pair (state, object) recognised
    margin: float  # mean of the truth's score minus the best rival's, biased; below 0 where it loses
    mistaken_for: str  # the most frequent wrong answer, "" if there is none
    mistaken: int  # how often

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


def per_pair(digest: ScoreSummary, space: LabelSpace, bias: float = 0.0) -> list[BreakdownRow]:
    """A row for each pair with images, in candidate order."""
    names = [" ".join(pair) for pair in space.pairs]
    right, margin = digest.correct(bias), margins(digest, bias)
    return _rows(names, digest.truth, digest.predictions(bias), right, margin, space.seen)


def per_primitive(
    digest: ScoreSummary, space: LabelSpace, part: PrimitiveKind, bias: float = 0.0
) -> list[BreakdownRow]:
    """A row for each state (object) with images; right where the predicted pair has it."""
    names, index = primitive_labels(space, part)
    truth, found = index[digest.truth], index[digest.predictions(bias)]
    return _rows(list(names), truth, found, truth == found, margins(digest, bias), None)


def hardest_unseen(rows: Sequence[BreakdownRow], count: int = 20) -> list[BreakdownRow]:
    """The unseen pairs with the lowest accuracy, then the lowest margin."""
    return sorted((row for row in rows if row.seen is False), key=lambda row: (row.accuracy, row.margin))[
        :count
    ]


def margins(digest: ScoreSummary, bias: float = 0.0) -> FloatArray:
    """N float64: the truth's biased score minus that of the prediction; 0 where they are the same."""
    score = digest.truth_score.astype(np.float64) + np.where(digest.truth_seen, 0.0, bias)
    margin: FloatArray = score - np.maximum(
        digest.best_seen.astype(np.float64), digest.best_unseen.astype(np.float64) + bias
    )
    return margin


def _rows(
    names: list[str],
    truth: IntArray,
    found: IntArray,
    right: BoolArray,
    margin: FloatArray,
    seen: BoolArray | None,
) -> list[BreakdownRow]:
    order = np.argsort(truth, kind="stable")
    starts = np.flatnonzero(np.diff(truth[order], prepend=-1))
    rows = []
    for images in np.split(order, starts[1:]):
        label = int(truth[images[0]])
        wrong = Counter(found[images[~right[images]]].tolist())
        wrong.pop(label, None)  # a tie that was counted as wrong is no other answer
        other, times = min(wrong.items(), key=lambda item: (-item[1], item[0])) if wrong else (-1, 0)
        finite = margin[images][np.isfinite(margin[images])]
        rows.append(
            BreakdownRow(
                name=names[label],
                seen=None if seen is None else bool(seen[label]),
                images=len(images),
                accuracy=percent(right[images]),
                margin=float(finite.mean()) if len(finite) else 0.0,
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
    digest: ScoreSummary, space: LabelSpace, part: PrimitiveKind, bias: float = 0.0, *, limit: int = 24
) -> Confusion:
    """The ``limit`` states (objects) that take part in the most mistakes, in index order."""
    names, index = primitive_labels(space, part)
    truth, found = index[digest.truth], index[digest.predictions(bias)]
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (truth, found), 1)
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


def reliability(digest: ScoreSummary, bias: float = 0.0, *, bins: int = 10) -> Reliability:
    """How far the softmax over all candidates can be trusted at this bias."""
    confidence, right = confidences(digest, bias), digest.correct(bias)
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    images = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # an empty bin has no mean
        mean = 100 * np.bincount(place, confidence, bins) / images
        accuracy = 100 * np.bincount(place, right.astype(np.float64), bins) / images
    error = float(np.nansum(np.abs(mean - accuracy) * images) / len(digest))
    return Reliability(mean, accuracy, images, error)


def confidences(digest: ScoreSummary, bias: float = 0.0) -> FloatArray:
    """N float64 in 0..1: softmax probability of the prediction among all candidates."""
    unseen = digest.best_unseen.astype(np.float64) + bias
    mass = np.logaddexp(digest.seen_mass.astype(np.float64), digest.unseen_mass + bias)
    share: FloatArray = np.clip(np.exp(np.maximum(digest.best_seen, unseen) - mass), 0, 1)
    return share


def per_image(
    digest: ScoreSummary, space: LabelSpace, images: Sequence[str], bias: float = 0.0
) -> Iterator[dict[str, Any]]:
    """One JSON object an image: truth, prediction, scores, rank; ``images`` names them."""
    found, right, sure = digest.predictions(bias), digest.correct(bias), confidences(digest, bias)
    competes = np.isfinite(digest.truth_score)
    for i, name in enumerate(images):
        yield {
            "image": name,
            "truth": list(space.pairs[digest.truth[i]]),
            "seen": bool(digest.truth_seen[i]),
            "predicted": list(space.pairs[found[i]]),
            "correct": bool(right[i]),
            "probability": float(sure[i]),
            "rank": int(digest.seen_ahead[i] + digest.unseen_ahead[i]) + 1 if competes[i] else None,
            "score": _finite(digest.truth_score[i]),
            "best_seen": _candidate(space, digest.best_seen_index[i], digest.best_seen[i]),
            "best_unseen": _candidate(space, digest.best_unseen_index[i], digest.best_unseen[i]),
        }


def write_per_image(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Write JSON lines; the file appears whole."""
    with atomic_file(file) as part, part.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def primitive_labels(space: LabelSpace, part: PrimitiveKind) -> tuple[tuple[str, ...], IntArray]:
    """Names of the states (objects), and P int64: which one each pair has."""
    return (space.states, space.pair_state) if part == "state" else (space.objects, space.pair_object)


def percent(right: BoolArray) -> float:
    return 100.0 * np.count_nonzero(right) / max(len(right), 1)


def _candidate(space: LabelSpace, index: np.int64, score: np.float32) -> dict[str, Any] | None:
    return None if index < 0 else {"pair": list(space.pairs[index]), "score": float(score)}


def _finite(score: np.float32) -> float | None:
    return float(score) if np.isfinite(score) else None
