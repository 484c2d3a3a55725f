"""Cross-modal fusion: image-to-text maps that close the gap between the two modalities."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class ImageToText(nn.Module):
    """``u = normalise(v + M(v))``, with M an MLP whose last layer starts at zero.

    Args:
        joint: D.
        hidden: width of the MLP.
    """

    def __init__(self, joint: int, hidden: int) -> None:
        super().__init__()
        self.widen = nn.Linear(joint, hidden)
        self.narrow = nn.Linear(hidden, joint)
        nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.narrow.bias)

    def forward(self, v: Tensor) -> Tensor:
        """Unit vectors ``B x D`` -> unit vectors ``B x D``."""
        return F.normalize(v + self.narrow(F.gelu(self.widen(v))), dim=-1)
