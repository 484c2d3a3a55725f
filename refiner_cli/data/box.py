"""A box of a detector: which part of an image is recognised."""

from __future__ import annotations

import math
from dataclasses import dataclass

from refiner_cli.data.image_file import UnreadableError


@dataclass(frozen=True)
class Box:
    """A rectangle in the upright image.

    Attributes:
        x, y: the upper left corner; with ``width`` and ``height`` in pixels, or in fractions of the image.
        fractions: whether they are fractions.
        margin: what is added on every side, as a share of the box's longer side.
    """

    x: float
    y: float
    width: float
    height: float
    fractions: bool = False
    margin: float = 0.0

    def region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in pixels of an image of this size, cut at its edges.

        Raises UnreadableError for a box without area, or outside of the image.
        """
        scale_x, scale_y = (width, height) if self.fractions else (1, 1)
        x, y, w, h = self.x * scale_x, self.y * scale_y, self.width * scale_x, self.height * scale_y
        if not all(map(math.isfinite, (x, y, w, h))) or w <= 0 or h <= 0:
            raise UnreadableError(f"its box {self} has no area")
        around = self.margin * max(w, h)
        left, top = max(0.0, x - around), max(0.0, y - around)
        right, bottom = min(float(width), x + w + around), min(float(height), y + h + around)
        if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
            raise UnreadableError(f"its box {self} lies outside of the image of {width} x {height} pixels")
        return left, top, right, bottom

    def enlarge(self, side: int, width: int, height: int) -> int:
        """The side that a complete image needs so that the box has ``side`` pixels, however it is turned."""
        shorter, least = min(width, height), min(self.width, self.height)
        within = min(least, 1.0) * shorter if self.fractions else min(least, float(shorter))
        return math.ceil(side * shorter / max(1.0, within)) if within > 0 else side

    def __str__(self) -> str:
        return f"({self.x:g}, {self.y:g}, {self.width:g}, {self.height:g})"
