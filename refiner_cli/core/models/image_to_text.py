"""Image-to-text maps that close the gap between the two modalities, one per role.

Training shows every state and every object, so their maps may learn whatever helps. It does not show
every composition: a free map behind the joint space fits the seen pairs and undoes for the others what CLIP
had aligned (3 to 7 points of AUC on the demo, see the study's notes). The composition's map is therefore
a translation, the same for every image: most of the gap is one constant vector (Liang et al., Mind the Gap,
NeurIPS 2022), and a map that does not look at the image cannot name a seen pair.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.core.models.base import ImageVectors


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


class Translation(nn.Module):
    """``u = normalise(v + gap)``, with one learned vector that starts at zero.

    Args:
        joint: D.
    """

    def __init__(self, joint: int) -> None:
        super().__init__()
        self.gap = nn.Parameter(torch.zeros(joint))

    def forward(self, v: Tensor) -> Tensor:
        """Unit vectors ``B x D`` -> unit vectors ``B x D``."""
        return F.normalize(v + self.gap, dim=-1)


class ImageToTextMaps(nn.Module):
    """The three maps, from refined image vectors to text space.

    Args:
        joint: D.
        hidden: width of the maps of state and object.
    """

    def __init__(self, joint: int, hidden: int) -> None:
        super().__init__()
        self.composition = Translation(joint)
        self.state, self.object = ImageToText(joint, hidden), ImageToText(joint, hidden)

    def forward(self, refined: ImageVectors) -> ImageVectors:
        """Unit vectors per role -> unit vectors per role."""
        return ImageVectors(
            self.composition(refined.composition),
            self.state(refined.state),
            self.object(refined.object),
            branches=refined.branches,
        )
