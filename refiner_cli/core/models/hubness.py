"""Hubness correction: some texts are similar to every image, whatever it shows.

Images and texts lie apart in the joint space (the modality gap), and seen from the images some texts
are closer than others. Training evens that out among the seen pairs; an unseen pair keeps the level
that its text happens to have. So part of a text's typical similarity to training images, its
*offset*, is subtracted from its logits::

    offset(t) = a / T * log mean_q exp(T s c_q . t)

with the centres ``c_q`` of the training images of each seen pair, the logit scale ``s``, the softness
``T`` and the strength ``a``. Towards T = 0 it is ``a`` times the mean similarity, that is, centring the
image vectors; with a = 1 and T = 1 it is the inverted softmax (Smith et al., ICLR 2017). Hubs in
zero-shot learning: Dinu et al., ICLR 2015 workshop.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SOFTNESS = 0.25  # T, selected on held-out training pairs of the demo (see the study's notes)
CENTRES = "hubness.centres"  # the name of the centres in a stored model
CHUNK_SIZE = 4096  # texts compared with all centres at once


class HubnessCorrection(nn.Module):
    """Per-text similarity offset, estimated on training images; 0 before they are seen.

    Args:
        pairs: Q seen pairs.
        joint: D.
    """

    centres: Tensor  # Q x D, the mean image vector of each seen pair

    def __init__(self, pairs: int, joint: int) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros(pairs, joint))

    def fit(self, vectors: Tensor, truth: Tensor) -> None:
        """Estimate the centres from training images.

        Args:
            vectors: ``N x D``, their composition vectors.
            truth: ``N`` int64, the seen pair of each; a pair without images has its centre at 0.
        """
        sums = torch.zeros_like(self.centres).index_add_(0, truth, vectors.to(self.centres))
        ones = sums.new_ones(len(truth))
        count = sums.new_zeros(len(sums)).index_add_(0, truth, ones).clamp(min=1)
        self.centres.copy_(sums / count[:, None])

    def forward(self, texts: Tensor, scale: float | Tensor, *, strength: float, softness: float) -> Tensor:
        """Unit vectors ``P x D`` -> their offsets ``P`` in logits, float32 whatever the precision outside."""
        with torch.autocast(texts.device.type, enabled=False):
            parts = [
                (softness * scale * part @ self.centres.T).logsumexp(-1) for part in texts.split(CHUNK_SIZE)
            ]
            return (torch.cat(parts) - math.log(len(self.centres))) * strength / softness
