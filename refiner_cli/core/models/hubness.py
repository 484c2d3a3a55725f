"""Hubs: texts that are near every picture, whatever it shows.

Image and text vectors lie apart in the joint space (the modality gap), and seen from the pictures some
texts lie nearer than others. Training evens that out among the seen pairs; an unseen pair keeps the
height that its text happens to have. So from the similarity of a text and a picture we take half of
the similarity that the text has with the training pictures anyway, its *level*::

    level(t) = 1/2 1/T log mean_q exp(T s c_q . t)

with the centres ``c_q`` of the training pictures of each seen pair, the logit scale ``s`` and the softness
``T``. Towards T = 0 it is the mean similarity, so that image vectors are centred half the way; the whole
of it at T = 1 is the inverted softmax (Smith et al., ICLR 2017). Hubs in zero-shot learning: Dinu et al.,
ICLR 2015 workshop.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Both were chosen on held-out training pairs and on validation (refiner_cli/experiments/NOTES.md).
SOFTNESS = 0.25  # T
SHARE = 0.5  # the half
CHUNK = 4096  # texts compared with all centres at once


class Hubs(nn.Module):
    """What texts get from pictures that may not show them.

    Until the centres are measured every level is 0.

    Args:
        pairs: Q seen pairs.
        joint: D.
    """

    centres: Tensor  # Q x D, the mean image vector of each seen pair

    def __init__(self, pairs: int, joint: int) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros(pairs, joint))

    def measure(self, vectors: Tensor, truth: Tensor) -> None:
        """Take the centres of training pictures.

        Args:
            vectors: ``N x D``, their composition vectors.
            truth: ``N`` int64, the seen pair of each; a pair without pictures has its centre at 0.
        """
        sums = torch.zeros_like(self.centres).index_add_(0, truth, vectors.to(self.centres))
        count = torch.bincount(truth, minlength=len(sums)).clamp(min=1)
        self.centres.copy_(sums / count[:, None])

    def forward(self, texts: Tensor, scale: float | Tensor) -> Tensor:
        """Unit vectors ``P x D`` -> their levels ``P`` in logits, float32 whatever the precision outside."""
        with torch.autocast(texts.device.type, enabled=False):
            parts = [(SOFTNESS * scale * part @ self.centres.T).logsumexp(-1) for part in texts.split(CHUNK)]
            return (torch.cat(parts) - math.log(len(self.centres))) * SHARE / SOFTNESS
