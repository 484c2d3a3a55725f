"""Shifted views: test-time augmentation by fractions of a patch.

An image tower cuts an image into patches on one fixed grid, and what lies across a border between two
patches is seen in halves. At test time an image can therefore be encoded several times, shifted by up
to a quarter of a patch, and the vectors averaged. Each view costs a forward pass.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

Shift = tuple[int, int]  # quarters of a patch right and down

# The shifts of one, two and four views.
SHIFTS: dict[int, tuple[Shift, ...]] = {
    1: ((0, 0),),
    2: ((-1, -1), (1, 1)),
    4: ((-1, -1), (1, 1), (-1, 1), (1, -1)),
}


def shifted_view(images: Tensor, patch: int, shift: Shift) -> Tensor:
    """The images ``B x 3 x H x W`` moved by a shift, with mirrored edges; ``patch`` is its side in pixels."""
    if shift == (0, 0):
        return images
    step = max(1, round(patch / 4))
    height, width = images.shape[-2:]
    padded = F.pad(images, (step,) * 4, "reflect")
    x, y = (step * (1 + quarters) for quarters in shift)
    return padded[..., y : y + height, x : x + width]
