"""The best pairs of a batch of images, from scores that arrive in blocks of pairs.

Softmax, sums over states and objects, and the top k are kept up to date block by block, so that the memory
does not grow with the number of pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from refiner_cli.core.models.calibration import Temperatures, tempered
from refiner_cli.errors import ModelFileError

GROUP = 64  # columns whose maximum is looked at before they are


@dataclass(frozen=True)
class RankedScores:
    """Of B images: the best k pairs, and the probabilities of all S states and O objects."""

    pairs: Tensor  # B x k int64, best first
    scores: Tensor  # B x k, as they were given
    probabilities: Tensor  # B x k, among all pairs
    states: Tensor  # B x S, summed over the pairs of each state
    objects: Tensor  # B x O


def top_columns(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As ``scores.topk(min(k, P))`` of ``B x P``: the best values of every row and their columns.

    On a CPU topk takes longer than any other step that follows the matrix product, and reading a maximum next
    to nothing. The best k are in the k groups of columns with the highest maxima, or behind the last group.
    """
    B, P = scores.shape
    groups = P // GROUP
    if scores.device.type != "cpu" or groups < 4 * k:
        best = scores.topk(min(k, P))
        return best.values, best.indices
    grouped = scores[:, : groups * GROUP].unflatten(1, (groups, GROUP))  # B x G x GROUP
    chosen = grouped.amax(2).topk(k, sorted=False).indices  # B x k
    candidates = grouped[torch.arange(B)[:, None], chosen].flatten(1)  # B x k GROUP
    best = torch.cat([candidates, scores[:, groups * GROUP :]], 1).topk(k)
    firsts = (
        torch.cat([chosen, chosen.new_full((B, 1), groups)], 1) * GROUP
    )  # columns of candidates 0, GROUP, ..
    place = (best.indices // GROUP).clamp_(max=k)
    return best.values, firsts.gather(1, place) + best.indices - place * GROUP


def add_pairs(weights: Tensor, indices: tuple[Tensor, Tensor], sizes: tuple[int, int]) -> list[Tensor]:
    """Weights ``B x P'`` summed over the pairs of each state and of each object, ``S x B`` and ``O x B``."""
    by_pair = weights.T.contiguous()  # P' x B: rows are added faster than columns
    return [
        weights.new_zeros(size, len(weights)).index_add_(0, index.to(weights.device), by_pair)
        for size, index in zip(sizes, indices, strict=True)
    ]


def add_grid(weights: Tensor, indices: tuple[Tensor, Tensor], sizes: tuple[int, int]) -> list[Tensor]:
    """As :func:`add_pairs`, of consecutive states with every object each: sums along two axes."""
    grid, first = weights.unflatten(1, (-1, sizes[1])), int(indices[0][0])
    states = weights.new_zeros(sizes[0], len(weights))
    states[first : first + grid.shape[1]] = grid.sum(2).T
    return [states, grid.sum(1).T]


class ScoreRanking:
    """Takes blocks of scores, B x P' each.

    Args:
        images: B.
        sizes: the numbers of states and objects.
        temperatures: what makes probabilities of the scores; None: their softmax.
    """

    def __init__(
        self,
        images: int,
        sizes: tuple[int, int],
        top_k: int,
        device: torch.device,
        temperatures: Temperatures | None = None,
    ) -> None:
        exact = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.top_k, self.sizes = top_k, sizes
        self.temperatures = temperatures or Temperatures()
        self.peak = torch.full((images, 1), -torch.inf, dtype=exact, device=device)  # best value so far
        self.mass = torch.zeros(images, 1, dtype=exact, device=device)  # sum of exp(value - peak)
        self.parts = [torch.zeros(size, images, dtype=exact, device=device) for size in sizes]
        self.scores = torch.empty(images, 0, device=device)
        self.pairs = torch.empty(images, 0, dtype=torch.int64, device=device)

    def update(
        self, scores: Tensor, first: int, state: Tensor, obj: Tensor, *, is_grid: bool = False
    ) -> None:
        """Add the pairs from index ``first`` on.

        Args:
            scores: B x P'.
            state: P' int64, the index of each pair's state; ``obj`` alike.
            is_grid: whether the pairs are consecutive states with every object each, in order.
        """
        values, indices = top_columns(scores, self.top_k)
        self.scores = torch.cat([self.scores, values], 1)
        self.pairs = torch.cat([self.pairs, indices + first], 1)
        best = self.scores.topk(min(self.top_k, self.scores.shape[1]))
        self.scores, self.pairs = best.values, self.pairs.gather(1, best.indices)

        weights = self.tempered_scores(scores).softmax(1)  # B x P', of this block alone
        peak = self.tempered_scores(values[:, :1]).to(self.peak.dtype)
        # exp(0) is the block's sum times the weight of its best pair.
        mass = 1 / weights.gather(1, indices[:, :1]).to(self.peak.dtype)
        highest = torch.maximum(self.peak, peak)
        shrink, grow = (self.peak - highest).exp(), (peak - highest).exp() * mass
        self.peak, self.mass = highest, self.mass * shrink + grow
        add_up = add_grid if is_grid else add_pairs
        for part, sums in zip(self.parts, add_up(weights, (state, obj), self.sizes), strict=True):
            part.mul_(shrink.T).add_(sums.to(part.dtype) * grow.T)

    def tempered_scores(self, scores: Tensor) -> Tensor:
        """Scores divided by the temperature, in float32."""
        return scores.float() if self.temperatures.pair == 1 else scores.float() / self.temperatures.pair

    def result(self) -> RankedScores:
        """Raises ModelFileError if a score was not a finite number."""
        if not torch.isfinite(self.mass).all():
            raise ModelFileError(
                "The model computes scores that are not finite numbers.",
                hint="Its weights may be damaged; with --precision fp16 or bf16, try fp32.",
            )
        values = self.tempered_scores(self.scores).to(self.peak.dtype)
        probabilities = (values - self.peak).exp() / self.mass
        states, objects = (
            tempered((part / self.mass.T).T, temperature)
            for part, temperature in zip(
                self.parts, (self.temperatures.state, self.temperatures.object), strict=True
            )
        )
        return RankedScores(self.pairs, self.scores, probabilities, states, objects)
