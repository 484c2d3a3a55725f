"""Shifted views: test-time augmentation by fractions of a patch.

An image tower cuts an image into patches on one fixed grid, and what lies across a border between two
patches is seen in halves. At test time an image can therefore be encoded several times, shifted by up
to a quarter of a patch, and the vectors averaged. Each view costs a forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F

# The shifts of two and of four views, in quarters of a patch right and down.
SHIFTS = {2: ((-1, -1), (1, 1)), 4: ((-1, -1), (1, 1), (-1, 1), (1, -1))}


def shifted_views(images: Tensor, patch: int, count: int) -> Iterator[Tensor]:
    """The images shifted by up to a quarter of a patch, once per view, with mirrored edges.

    Args:
        images: ``B x 3 x H x W``.
        patch: its side in pixels.
        count: how many views; 1 is the image as it is, else a key of ``SHIFTS``.
    """
    if count == 1:
        yield images
        return
    step = max(1, round(patch / 4))
    height, width = images.shape[-2:]
    padded = F.pad(images, (step,) * 4, "reflect")
    for right, down in SHIFTS[count]:
        x, y = step * (1 + right), step * (1 + down)
        yield padded[..., y : y + height, x : x + width]
