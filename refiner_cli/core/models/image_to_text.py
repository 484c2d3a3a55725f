"""Cross-modal fusion: image-to-text maps that close the gap between the two modalities.

All states and objects are shown in training, so their maps may learn whatever helps. Compositions
are not: a map behind the joint space fits the seen ones and turns away from the others what CLIP had
aligned (3 to 7 points of AUC, ``refiner_cli/experiments/NOTES.md``), so theirs is CLIP's own, adapted.
"""

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
        self.scale = joint**0.5  # makes the entries of a unit vector about 1, which layers expect
        self.widen = nn.Linear(joint, hidden)
        self.narrow = nn.Linear(hidden, joint)
        nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.narrow.bias)

    def forward(self, v: Tensor) -> Tensor:
        """Unit vectors ``B x D`` -> unit vectors ``B x D``."""
        return F.normalize(v + self.narrow(F.gelu(self.widen(v * self.scale))) / self.scale, dim=-1)
