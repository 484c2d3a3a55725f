"""Patch grids: the same picture, cut into patches at other places.

An image tower cuts a picture into patches on one fixed grid, and what lies across a border between two
patches is seen in halves. Outside training a picture can therefore be read on several grids that lie half
a patch apart, diagonally (two) or both ways (four), and the vectors added. Each costs a pass through the
tower; two give most of what four give, on the tiny backbone (``refiner_cli/experiments/NOTES.md``).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F

# Where several grids lie, in quarters of a patch right and down.
PLACES = {2: ((-1, -1), (1, 1)), 4: ((-1, -1), (1, 1), (-1, 1), (1, -1))}


def on_grids(images: Tensor, patch: int, grids: int) -> Iterator[Tensor]:
    """The images moved by up to a quarter of a patch, once a grid, with mirrored edges.

    Args:
        images: ``B x 3 x H x W``.
        patch: pixels a side.
        grids: how many; 1, the picture as it is, or one of ``PLACES``.
    """
    if grids == 1:
        yield images
        return
    step = max(1, round(patch / 4))
    height, width = images.shape[-2:]
    padded = F.pad(images, (step,) * 4, "reflect")
    for right, down in PLACES[grids]:
        x, y = step * (1 + right), step * (1 + down)
        yield padded[..., y : y + height, x : x + width]
