"""Image-to-text maps that close the gap between the two modalities.

Training shows every state and every object, so their maps may learn whatever helps. It does not show
every composition: a map behind the joint space fits the seen pairs and undoes for the others what CLIP
had aligned (3 to 7 points of AUC on the demo, see the study's notes), so compositions have none.
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
