"""Batches of scores in, a few numbers per image out: never N x P in memory.

The reduction runs where the scores are (CPU or accelerator), in blocks of rows, so that the
temporary memory is bounded however many candidates compete. What is computed from the summary is the
matter of :mod:`refiner_cli.evaluation.metrics.bias_sweep`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refiner_cli.data.labels import BoolArray, LabelSpace
from refiner_cli.errors import ScoresError
from refiner_cli.evaluation.metrics.score_summary import ScoreSummary

BLOCK_ELEMENTS = 1 << 20  # scores reduced at once: 4 MB and a few temporaries of that size stay in cache


class ScoreStream:
    """Takes every image's scores once; the summary is ready at the end.

    Args:
        space: P candidates, in the order of the score columns.
        allowed: P bool, the candidates that may compete; None: all.

    Raises:
        ScoresError: ``allowed`` has another length, or leaves no candidate.
    """

    def __init__(self, space: LabelSpace, allowed: BoolArray | None = None) -> None:
        self.space = space
        count = len(space.pairs)
        if allowed is not None and allowed.shape != (count,):
            raise ScoresError(f"'allowed' has the shape {allowed.shape}, but {count} pairs compete.")
        if count == 0 or (allowed is not None and not allowed.any()):
            raise ScoresError("No pair may compete.")
        compete = np.ones(count, dtype=np.bool_) if allowed is None else allowed.astype(np.bool_)
        seen = space.seen
        self._all_train_compete = bool(compete[seen].all())
        self._host = {
            "state": torch.from_numpy(space.pair_state.copy()),
            "object": torch.from_numpy(space.pair_object.copy()),
            "seen": torch.from_numpy(seen.copy()),
            "compete": torch.from_numpy(compete),
            "train": torch.from_numpy(np.flatnonzero(seen)),
            "seen_columns": torch.from_numpy(np.flatnonzero(seen & compete)),
            "seen_index": torch.from_numpy(
                np.append(np.flatnonzero(seen & compete), -1)
            ),  # place -1: no candidate
            "unseen_only": torch.from_numpy(np.where(~seen & compete, 0, -np.inf).astype(np.float32)),
        }
        self._fixed = self._host  # or its copy on the device of the scores
        self._reduced: list[dict[str, Tensor]] = []
        self._images = 0

    def __len__(self) -> int:
        """Images received so far."""
        return self._images

    @torch.no_grad()
    def update(
        self, scores: Tensor | npt.NDArray[np.floating], truth: Tensor | npt.NDArray[np.integer]
    ) -> None:
        """Reduce the scores of B images.

        Args:
            scores: B x P, float32 or convertible, on any device; a memory map is read block by block.
            truth: B int64, the index of each image's true pair.

        Raises:
            ScoresError: a wrong shape, a truth out of range, or a score that is not finite; the message
                has row and column, rows counted from 0 over all updates.
        """
        columns = len(self.space.pairs)
        if scores.ndim != 2 or scores.shape[1] != columns:
            raise ScoresError(
                f"The scores have the shape {tuple(scores.shape)}, but {columns} pairs compete."
            )
        target = torch.as_tensor(truth)
        if target.shape != (scores.shape[0],) or target.is_floating_point():
            raise ScoresError(
                f"{scores.shape[0]} rows of scores came with a truth {tuple(target.shape)}, {target.dtype}.",
                hint="Give one integer index per row.",
            )
        outside = ((target < 0) | (target >= columns)).nonzero()
        if len(outside):
            row = int(outside[0])
            raise ScoresError(
                f"truth[{self._images + row}] is {int(target[row])}, outside the {columns} pairs.",
                hint=f"Indices run from 0 to {columns - 1}.",
            )
        step = max(BLOCK_ELEMENTS // columns, 1)
        for start in range(0, scores.shape[0], step):
            block = scores[start : start + step]
            if isinstance(block, np.ndarray):
                block = torch.from_numpy(
                    np.array(block, dtype=np.float32)
                )  # a copy: memory maps are read-only
            rows = block.float()
            self._check_finite(rows)
            if self._fixed["seen"].device != rows.device:
                self._fixed = {name: value.to(rows.device) for name, value in self._host.items()}
            self._reduced.append(
                self._reduce(rows, target[start : start + step].to(rows.device, torch.int64))
            )
            self._images += rows.shape[0]

    def summary(self) -> ScoreSummary:
        """Everything so far. Raises ScoresError if there was no image."""
        if not self._reduced:
            raise ScoresError("There are no images to evaluate.")
        return ScoreSummary(
            **{
                name: torch.cat([block[name].cpu() for block in self._reduced]).numpy()
                for name in self._reduced[0]
            }
        )

    def _check_finite(self, rows: Tensor) -> None:
        low, high = torch.aminmax(rows)
        if torch.isfinite(low) and torch.isfinite(high):
            return
        row, column = (int(i) for i in (~torch.isfinite(rows)).nonzero()[0])
        pair, value = " ".join(self.space.pairs[column]), rows[row, column].item()
        raise ScoresError(
            f"scores[{self._images + row}, {column}] (the pair '{pair}') is {value}.",
            hint="Every score must be a finite number; leave pairs out with 'allowed'.",
        )

    def _reduce(self, rows: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """B x P scores -> B-long tensors, one for each field of the summary.

        Written for few passes over B x P: comparisons go straight into a float buffer, whose sums are exact
        for counts below 2^24 and several times faster than those of booleans.
        """
        fixed = self._fixed
        truth_column = truth[:, None]  # B x 1
        truth_seen, competes = fixed["seen"][truth], fixed["compete"][truth]  # B
        score = rows.gather(1, truth_column).masked_fill(~competes[:, None], -torch.inf)  # B x 1
        itself = competes.long()  # the truth is among those that reach its score

        seen_rows = rows.index_select(1, fixed["seen_columns"])  # B x seen
        best_seen, place = _row_maximum(seen_rows)
        seen_index = fixed["seen_index"][place]
        best_train = best_seen if self._all_train_compete else _row_maximum(rows[:, fixed["train"]])[0]
        seen_ahead = (seen_rows >= score).sum(1) - itself * truth_seen
        seen_second, seen_mass = _rest(seen_rows, place, best_seen)

        unseen_rows = rows + fixed["unseen_only"]  # B x P, -inf in the other columns
        best_unseen, unseen_index = _row_maximum(unseen_rows)
        none = rows.new_full((), -torch.inf)
        before = [row[:t].amax() if t else none for row, t in zip(unseen_rows, truth.tolist(), strict=True)]
        reached = torch.ge(unseen_rows, score, out=torch.empty_like(unseen_rows)).sum(1).long()
        unseen_second, unseen_mass = _rest(unseen_rows, unseen_index, best_unseen)

        top_index = torch.where(best_unseen > best_seen, unseen_index, seen_index)
        second = torch.maximum(
            torch.minimum(best_seen, best_unseen), torch.maximum(seen_second, unseen_second)
        )
        state_tied, object_tied = self._ties(rows, top_index, second == torch.maximum(best_seen, best_unseen))
        return {
            "truth": truth,
            "truth_seen": truth_seen,
            "truth_score": score.squeeze(1),
            "best_seen": best_seen,
            "best_seen_index": seen_index,
            "best_unseen": best_unseen,
            "best_unseen_index": unseen_index,
            "best_train": best_train,
            "unseen_before": torch.stack(before),
            "seen_ahead": seen_ahead,
            "unseen_ahead": reached - itself * ~truth_seen,
            "state_tied": state_tied,
            "object_tied": object_tied,
            "seen_mass": seen_mass,
            "unseen_mass": unseen_mass,
        }

    def _ties(self, rows: Tensor, top_index: Tensor, tied: Tensor) -> tuple[Tensor, Tensor]:
        """Two of B bool: does a candidate of another state (object) share the best score where it is tied?"""
        tied_rows = tied.nonzero().squeeze(1)  # few rows, unless scores were rounded
        top = top_index[tied_rows][:, None]
        shared = (rows[tied_rows] == rows[tied_rows].gather(1, top)) & self._fixed["compete"]
        other_label = []
        for names in (self._fixed["state"], self._fixed["object"]):
            other = torch.zeros_like(tied)
            other[tied_rows] = (shared & (names != names[top])).any(1)
            other_label.append(other)
        return other_label[0], other_label[1]


def _row_maximum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Best score of each row and the first place that has it; -inf and -1 where there is none."""
    if rows.shape[1] == 0:
        best = rows.new_full(rows.shape[:1], -torch.inf)
        return best, torch.full_like(best, -1, dtype=torch.int64)
    place = rows.argmax(1)  # documented to be the first of equals
    best = rows.gather(1, place[:, None]).squeeze(1)
    return best, place.masked_fill(best == -torch.inf, -1)


def _rest(rows: Tensor, place: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """Best score of each row without that at ``place``; log sum exp of all scores. Overwrites ``rows``."""
    if rows.shape[1] == 0:
        return best, best
    rows.scatter_(1, place.clamp(min=0)[:, None], -torch.inf)
    second = rows.amax(1)
    shift = best.masked_fill(best == -torch.inf, 0)
    return second, rows.sub_(shift[:, None]).exp_().sum(1).log1p_() + best
