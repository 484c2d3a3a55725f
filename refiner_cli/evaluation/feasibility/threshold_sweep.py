"""The step curve at every threshold of a mask in one pass, instead of one pass per threshold.

With the truth left out, an image is decided by its best rival among seen pairs and, for each
threshold, its best rival among the unseen pairs that pass. Columns are sorted by the last threshold
they pass, so the second is a running maximum over groups. Memory is O(N x T).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from refiner_cli.core.models.calibration import Calibration
from refiner_cli.data.labels import LabelSpace
from refiner_cli.evaluation.metrics.score_summary import FloatArray
from refiner_cli.evaluation.metrics.seen_unseen import SeenUnseenCurve, step_curve
from refiner_cli.evaluation.metrics.streaming import BLOCK_ELEMENTS


@dataclass
class ThresholdStream:
    """Takes the scores of every image once, as a :class:`~refiner_cli.evaluation.scoring.ScoreConsumer`.

    Args:
        space: P candidates.
        calibration: what the scores are combined with.
        feasible: P, of each pair; seen pairs always compete.
        thresholds: T rising values; an unseen pair competes at those that its feasibility reaches.
    """

    space: LabelSpace
    calibration: Calibration
    feasible: FloatArray
    thresholds: list[float]
    _blocks: list[tuple[Tensor, ...]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        seen = self.space.seen
        self._level = np.searchsorted(self.thresholds, self.feasible, side="right")  # P, thresholds passed
        unseen = np.flatnonzero(~seen)
        unseen = unseen[np.argsort(-self._level[unseen], kind="stable")]  # strictest first
        passing = [int(np.count_nonzero(self._level[unseen] > t)) for t in range(len(self.thresholds))]
        self._sizes = np.diff(passing[::-1], prepend=0, append=len(unseen)).tolist()
        self._seen, self._unseen = torch.from_numpy(np.flatnonzero(seen)), torch.from_numpy(unseen)

    @torch.no_grad()
    def update(self, scores: Tensor, truth: Tensor) -> None:
        """Scores ``B x P`` float32 and the true pair of each image, ``B`` int64."""
        rows = max(BLOCK_ELEMENTS // scores.shape[1], 1)
        for block, block_truth in zip(scores.split(rows), truth.split(rows), strict=True):
            column = block_truth.to(block.device)[:, None]  # B x 1
            own = block.gather(1, column)
            rivals = block.scatter(1, column, -torch.inf)
            seen = _best_rival(rivals.index_select(1, self._seen.to(block.device)))
            groups = rivals.index_select(1, self._unseen.to(block.device)).split(self._sizes, 1)
            best = torch.stack([_best_rival(group) for group in groups[:-1]], 1)  # B x T, strictest first
            unseen = best.cummax(1).values.flip(1)  # B x T, by rising threshold
            self._blocks.append((block_truth.cpu(), own.squeeze(1).cpu(), seen.cpu(), unseen.cpu()))

    def curves(self) -> list[SeenUnseenCurve]:
        """The exact curve at each threshold."""
        truth, own, seen, unseen = (torch.cat(columns).numpy() for columns in zip(*self._blocks, strict=True))
        truth_seen, score = self.space.seen[truth], own.astype(np.float64)
        curves = []
        for t in range(len(self.thresholds)):
            lost = np.where(own > seen, score - unseen[:, t], -np.inf)
            wins = (own > unseen[:, t]) & (self._level[truth] > t)
            won = np.where(wins, seen - score, np.inf)
            curves.append(step_curve(np.where(truth_seen, lost, won), truth_seen))
        return curves


def _best_rival(rows: Tensor) -> Tensor:
    """Best score of each row, -inf where there is none."""
    return rows.amax(1) if rows.shape[1] else rows.new_full(rows.shape[:1], -torch.inf)
