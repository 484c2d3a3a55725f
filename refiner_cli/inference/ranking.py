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


@dataclass(frozen=True)
class RankedScores:
    """Of B images: the best k pairs, and the probabilities of all S states and O objects."""

    pairs: Tensor  # B x k int64, best first
    scores: Tensor  # B x k, as they were given
    probabilities: Tensor  # B x k, among all pairs
    states: Tensor  # B x S, summed over the pairs of each state
    objects: Tensor  # B x O


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
        self.top_k = top_k
        self.temperatures = temperatures or Temperatures()
        self.peak = torch.full((images, 1), -torch.inf, dtype=exact, device=device)  # best value so far
        self.mass = torch.zeros(images, 1, dtype=exact, device=device)  # sum of exp(value - peak)
        self.parts = [torch.zeros(size, images, dtype=exact, device=device) for size in sizes]
        self.scores = torch.empty(images, 0, device=device)
        self.pairs = torch.empty(images, 0, dtype=torch.int64, device=device)

    def update(self, scores: Tensor, first: int, state: Tensor, obj: Tensor) -> None:
        """Add the pairs from index ``first`` on.

        Args:
            scores: B x P'.
            state: P' int64, the index of each pair's state; ``obj`` alike.
        """
        best_of_block = scores.topk(min(self.top_k, scores.shape[1]))
        self.scores = torch.cat([self.scores, best_of_block.values], 1)
        self.pairs = torch.cat([self.pairs, best_of_block.indices + first], 1)
        best = self.scores.topk(min(self.top_k, self.scores.shape[1]))
        self.scores, self.pairs = best.values, self.pairs.gather(1, best.indices)

        weights = self.tempered_scores(scores).softmax(1)  # B x P', of this block alone
        peak = self.tempered_scores(best_of_block.values[:, :1]).to(self.peak.dtype)
        # exp(0) is the block's sum times the weight of its best pair.
        mass = 1 / weights.gather(1, best_of_block.indices[:, :1]).to(self.peak.dtype)
        highest = torch.maximum(self.peak, peak)
        shrink, grow = (self.peak - highest).exp(), (peak - highest).exp() * mass
        self.peak, self.mass = highest, self.mass * shrink + grow
        by_pair = weights.T.contiguous()  # P' x B: rows are added faster than columns
        for part, index in zip(self.parts, (state, obj), strict=True):
            sums = torch.zeros(part.shape, device=weights.device)
            sums.index_add_(0, index.to(weights.device), by_pair)
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
