"""What N images leave behind after their N x P scores are gone: a few numbers per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from refiner_cli.data.labels import BoolArray, IntArray

FloatArray = npt.NDArray[np.float64]
ScoreArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ScoreSummary:
    """Everything the metrics need to know about the scores of N images; every field has length N.

    Candidates are the pairs that may compete. Among equal scores the lowest index counts.

    Attributes:
        truth: index of the true pair.
        truth_seen: whether the true pair is a training pair.
        truth_score: score of the true pair; -inf where it may not compete.
        best_seen, best_seen_index: best score among seen candidates and its index; -inf, -1 if there is none.
        best_unseen, best_unseen_index: the same among unseen candidates.
        best_train: best score among all seen pairs, including those that may not compete (for ``legacy``).
        unseen_before: best score among unseen candidates with an index below the truth's (for ``legacy``).
        seen_ahead, unseen_ahead: number of seen and unseen candidates other than the truth that score at
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
        """The summary of some images; an index that is repeated counts as often as it is given."""
        return ScoreSummary(**{field.name: getattr(self, field.name)[images] for field in fields(self)})

    @classmethod
    def join(cls, parts: Sequence[ScoreSummary]) -> ScoreSummary:
        """The images of several summaries over the same candidates, of which other pairs may be seen."""
        columns = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)
        }
        return cls(**columns)

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
