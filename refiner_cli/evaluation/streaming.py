"""Batches of scores in, one digest of a few numbers per image out: never N x P in memory.

The reduction runs where the scores are (CPU or accelerator), in blocks of rows, so that the
temporary memory is bounded however many candidates compete. What happens to the digest afterwards
is :mod:`refiner_cli.evaluation.sweep`'s matter.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refiner_cli.data.labels import BoolArray, LabelSpace
from refiner_cli.errors import ScoresError
from refiner_cli.evaluation.sweep import Digest

BLOCK_ELEMENTS = 1 << 24  # scores reduced at once: 64 MB and a few temporaries of that size


class ScoreStream:
    """Feed it every image's scores once; ask for the digest at the end.

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
        compete = np.ones(count, dtype=np.bool_) if allowed is None else np.asarray(allowed, dtype=np.bool_)
        self._host = {
            "state": torch.from_numpy(space.pair_state.copy()),
            "object": torch.from_numpy(space.pair_object.copy()),
            "seen": torch.from_numpy(space.seen.copy()),
            "compete": torch.from_numpy(compete.copy()),
            "train": torch.from_numpy(np.flatnonzero(space.seen)),
            "seen_columns": torch.from_numpy(np.flatnonzero(space.seen & compete)),
            "unseen_mask": torch.from_numpy(~space.seen & compete),
        }
        self._all_compete = bool(compete.all())
        self._all_train_compete = bool(compete[space.seen].all())
        self._any_unseen = bool((~space.seen & compete).any())
        self._fixed = self._host
        self._parts: list[dict[str, Tensor]] = []
        self._images = 0

    def __len__(self) -> int:
        """Images seen so far."""
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
                f"The truth is {target.dtype} of shape {tuple(target.shape)}, for {scores.shape[0]} rows of scores.",
                hint="Give one integer index a row.",
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
            part = scores[start : start + step]
            if isinstance(part, np.ndarray):
                part = torch.from_numpy(np.array(part, dtype=np.float32))  # a copy: memory maps are read-only
            rows = part.float()
            self._check_finite(rows)
            if self._fixed["seen"].device != rows.device:
                self._fixed = {name: value.to(rows.device) for name, value in self._host.items()}
            self._parts.append(self._reduce(rows, target[start : start + step].to(rows.device, torch.int64)))
            self._images += rows.shape[0]

    def digest(self) -> Digest:
        """Everything so far. Raises ScoresError if there was no image."""
        if not self._parts:
            raise ScoresError("There are no images to evaluate.")
        return Digest(
            **{name: torch.cat([part[name].cpu() for part in self._parts]).numpy() for name in self._parts[0]}
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
        """B x P scores -> B-long tensors, one for each field of the digest."""
        fixed, columns = self._fixed, rows.shape[1]
        truth_column = truth[:, None]  # B x 1
        truth_seen = fixed["seen"][truth]  # B
        competes = fixed["compete"][truth]  # B
        none = rows.new_full((), -torch.inf)
        score = torch.where(competes, rows.gather(1, truth_column).squeeze(1), none)  # B
        own = competes.long()  # the truth counts itself among those at its score

        seen_rows = rows.index_select(1, fixed["seen_columns"])  # B x seen
        best_seen, best_seen_index = _best(seen_rows, fixed["seen_columns"])
        seen_ahead = (seen_rows >= score[:, None]).sum(1) - own * truth_seen
        best_train = (
            best_seen if self._all_train_compete else _best(rows[:, fixed["train"]], fixed["train"])[0]
        )

        unseen_rows = torch.where(fixed["unseen_mask"], rows, none)  # B x P, ours to overwrite
        best_unseen, best_unseen_index = _best(unseen_rows, None)
        if not self._any_unseen:
            best_unseen_index = torch.full_like(best_unseen_index, -1)
        unseen_ahead = ((unseen_rows >= score[:, None]) & fixed["unseen_mask"]).sum(1) - own * ~truth_seen
        before = torch.arange(columns, device=rows.device) < truth_column  # B x P
        unseen_before = torch.where(before, unseen_rows, none).amax(1)

        top = torch.maximum(best_seen, best_unseen)  # B
        top_index = torch.where(best_unseen > best_seen, best_unseen_index, best_seen_index)
        state_tied, object_tied = self._ties(rows, top, top_index)
        return {
            "truth": truth,
            "truth_seen": truth_seen,
            "truth_score": score,
            "best_seen": best_seen,
            "best_seen_index": best_seen_index,
            "best_unseen": best_unseen,
            "best_unseen_index": best_unseen_index,
            "best_train": best_train,
            "unseen_before": unseen_before,
            "seen_ahead": seen_ahead,
            "unseen_ahead": unseen_ahead,
            "state_tied": state_tied,
            "object_tied": object_tied,
            "seen_mass": _log_mass(seen_rows, best_seen),
            "unseen_mass": _log_mass(unseen_rows, best_unseen),
        }

    def _ties(self, rows: Tensor, top: Tensor, top_index: Tensor) -> tuple[Tensor, Tensor]:
        """Two of B bool: does a candidate of another state (object) share the best score?"""
        fixed = self._fixed
        shared = rows == top[:, None]  # B x P
        if not self._all_compete:
            shared &= fixed["compete"]
        some = (shared.sum(1) > 1).nonzero().squeeze(1)  # few rows, unless scores were rounded
        tied = []
        for names in (fixed["state"], fixed["object"]):
            found = torch.zeros_like(top, dtype=torch.bool)
            found[some] = (shared[some] & (names != names[top_index[some]][:, None])).any(1)
            tied.append(found)
        return tied[0], tied[1]


def _best(rows: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    """Best score of each row and the lowest index that has it (into ``columns``); -inf and -1 if empty."""
    if rows.shape[1] == 0:
        nothing = rows.new_full(rows.shape[:1], -torch.inf)
        return nothing, torch.full_like(nothing, -1, dtype=torch.int64)
    best, index = rows.max(1)
    return best, index if columns is None else columns[index]


def _log_mass(rows: Tensor, best: Tensor) -> Tensor:
    """log sum exp of each row, whose maximum is known; overwrites ``rows``."""
    shift = torch.where(torch.isfinite(best), best, 0)
    return rows.sub_(shift[:, None]).exp_().sum(1).log_() + shift
