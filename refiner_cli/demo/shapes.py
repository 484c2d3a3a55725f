"""Silhouettes of the demo objects: each drawn with a few strokes, varied at random.

A shape is a function that takes a :class:`Pen` and a random generator. Coordinates run from -1 to
1, x to the right, y down. ``pen.body`` collects the silhouette, ``pen.accent`` the part
with another colour (a stem, a handle, a sole). Nothing here knows about states or colours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

Rng = np.random.Generator
Point = tuple[float, float]
PenLayer = Literal["body", "accent"]
SUPERSAMPLE = 3


class Pen:
    """Draws into two masks, in a frame turned by ``angle`` (radians) and squeezed by ``aspect``."""

    def __init__(self, size: int, angle: float, aspect: float) -> None:
        self.pixels = size * SUPERSAMPLE
        self.layers = {
            "body": Image.new("L", (self.pixels, self.pixels)),
            "accent": Image.new("L", (self.pixels, self.pixels)),
        }
        self.draw = {name: ImageDraw.Draw(image) for name, image in self.layers.items()}
        self.cos, self.sin, self.aspect = math.cos(angle), math.sin(angle), aspect

    def place(self, points: Sequence[Point]) -> list[Point]:
        half, unit = self.pixels / 2, self.pixels / 2 / 1.15  # leave a margin around [-1, 1]
        placed = []
        for across, down in points:
            x, y = across * self.aspect, down / self.aspect
            placed.append(
                (half + unit * (x * self.cos - y * self.sin), half + unit * (x * self.sin + y * self.cos))
            )
        return placed

    def polygon(self, *points: Point, layer: PenLayer = "body", cut: bool = False) -> None:
        self.draw[layer].polygon(self.place(points), fill=0 if cut else 255)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, layer: PenLayer = "body", *, cut: bool = False
    ) -> None:
        turns = [2 * math.pi * i / 28 for i in range(28)]
        self.polygon(*[(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns], layer=layer, cut=cut)

    def stroke(self, *points: Point, width: float, layer: PenLayer = "body", cut: bool = False) -> None:
        """A thick line with round ends; ``width`` is its full width."""
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            length = math.hypot(x1 - x0, y1 - y0) or 1.0
            nx, ny = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
            quad = ((x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny))
            self.polygon(*quad, layer=layer, cut=cut)
        for x, y in points:
            self.ellipse(x, y, width / 2, width / 2, layer=layer, cut=cut)

    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Body (accent included) and accent, each ``size x size`` float32 in [0, 1]."""
        size = self.pixels // SUPERSAMPLE
        small = [
            np.asarray(layer.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255
            for layer in self.layers.values()
        ]
        return np.maximum(small[0], small[1]), small[1]


def apple(pen: Pen, rng: Rng) -> None:
    r = rng.uniform(0.48, 0.56)
    pen.ellipse(-0.3, 0.12, r, 0.72)
    pen.ellipse(0.3, 0.12, r, 0.72)
    pen.stroke((0, -0.5), (rng.uniform(-0.1, 0.15), -0.92), width=0.13, layer="accent")
    pen.ellipse(0.3, -0.76, 0.26, 0.12, layer="accent")


def banana(pen: Pen, rng: Rng) -> None:
    bend = rng.uniform(0.75, 0.95)
    arc = [math.pi * (0.12 + 0.76 * i / 8) for i in range(9)]
    points = [(0.95 * math.cos(t), -0.5 + bend * math.sin(t)) for t in arc]
    pen.stroke(*points[1:-1], width=0.42)
    pen.stroke(*points, width=0.2)
    pen.stroke(points[-1], (points[-1][0] - 0.05, points[-1][1] - 0.14), width=0.18, layer="accent")


def carrot(pen: Pen, rng: Rng) -> None:
    w = rng.uniform(0.28, 0.36)
    pen.polygon((-w, -0.4), (w, -0.4), (0.05, 0.98), (-0.05, 0.98))
    pen.ellipse(0, -0.4, w, 0.16)
    for x in (-0.28, 0.0, 0.28):
        pen.stroke((0, -0.45), (x + rng.uniform(-0.08, 0.08), -0.95), width=0.13, layer="accent")


def lemon(pen: Pen, rng: Rng) -> None:
    pen.ellipse(0, 0, 0.72, rng.uniform(0.5, 0.58))
    pen.polygon((-0.6, -0.24), (-0.98, 0), (-0.6, 0.24))
    pen.polygon((0.6, -0.24), (0.98, 0), (0.6, 0.24))


def mushroom(pen: Pen, rng: Rng) -> None:
    w = rng.uniform(0.2, 0.28)
    pen.polygon((-w, 0), (w, 0), (w * 1.25, 0.85), (-w * 1.25, 0.85), layer="accent")
    pen.ellipse(0, -0.1, 0.88, 0.7)
    pen.polygon((-1, 0.08), (1, 0.08), (1, 0.7), (-1, 0.7), cut=True)
    pen.polygon((-w, 0), (w, 0), (w * 1.25, 0.85), (-w * 1.25, 0.85))


def pear(pen: Pen, rng: Rng) -> None:
    pen.ellipse(0, 0.36, rng.uniform(0.54, 0.62), 0.58)
    pen.ellipse(0, -0.3, 0.32, 0.46)
    pen.polygon((-0.31, -0.3), (0.31, -0.3), (0.52, 0.25), (-0.52, 0.25))
    pen.stroke((0, -0.7), (rng.uniform(-0.12, 0.12), -1.0), width=0.12, layer="accent")


def cherry(pen: Pen, rng: Rng) -> None:
    r = rng.uniform(0.34, 0.4)
    pen.ellipse(-0.46, 0.52, r, r)
    pen.ellipse(0.46, 0.46, r, r)
    pen.stroke((-0.44, 0.3), (0.05, -0.85), (0.44, 0.2), width=0.1, layer="accent")


def onion(pen: Pen, rng: Rng) -> None:
    pen.ellipse(0, 0.2, rng.uniform(0.66, 0.74), 0.58)
    pen.polygon((-0.36, -0.2), (0.36, -0.2), (0.06, -0.9), (-0.06, -0.9))
    for x in (-0.2, 0.0, 0.2):
        pen.stroke((x * 0.4, 0.7), (x, 0.98), width=0.07, layer="accent")


def bell(pen: Pen, rng: Rng) -> None:
    w = rng.uniform(0.4, 0.48)
    pen.ellipse(0, -0.35, w, 0.5)
    pen.polygon((-w, -0.35), (w, -0.35), (0.82, 0.62), (-0.82, 0.62))
    pen.ellipse(0, 0.74, 0.18, 0.2, layer="accent")
    pen.ellipse(0, -0.9, 0.13, 0.1)


def hammer(pen: Pen, rng: Rng) -> None:
    pen.stroke((0, -0.4), (0, 0.92), width=rng.uniform(0.17, 0.23), layer="accent")
    pen.polygon((-0.62, -0.88), (0.45, -0.88), (0.85, -0.62), (0.45, -0.42), (-0.62, -0.42))


def key(pen: Pen, rng: Rng) -> None:
    r = rng.uniform(0.36, 0.42)
    pen.ellipse(0, -0.55, r, r)
    pen.ellipse(0, -0.55, r * 0.45, r * 0.45, cut=True)
    pen.stroke((0, -0.18), (0, 0.92), width=0.2)
    pen.polygon((0, 0.44), (0.4, 0.44), (0.4, 0.6), (0, 0.6))
    pen.polygon((0, 0.76), (0.32, 0.76), (0.32, 0.94), (0, 0.94))


def spoon(pen: Pen, rng: Rng) -> None:
    pen.ellipse(0, -0.6, rng.uniform(0.3, 0.36), 0.4)
    pen.stroke((0, -0.3), (0, 0.9), width=0.15)


def sword(pen: Pen, rng: Rng) -> None:
    w = rng.uniform(0.13, 0.17)
    pen.polygon((-w, 0.42), (-w, -0.75), (0, -1.0), (w, -0.75), (w, 0.42))
    pen.stroke((-0.42, 0.46), (0.42, 0.46), width=0.16)
    pen.stroke((0, 0.5), (0, 0.92), width=0.17, layer="accent")


def gear(pen: Pen, rng: Rng) -> None:
    teeth = int(rng.integers(7, 10))
    pen.ellipse(0, 0, 0.66, 0.66)
    for i in range(teeth):
        t = 2 * math.pi * i / teeth
        pen.stroke(
            (0.5 * math.cos(t), 0.5 * math.sin(t)), (0.85 * math.cos(t), 0.85 * math.sin(t)), width=0.24
        )
    pen.ellipse(0, 0, 0.26, 0.26, cut=True)


def pot(pen: Pen, rng: Rng) -> None:
    pen.polygon((-0.62, -0.3), (0.62, -0.3), (0.55, 0.7), (-0.55, 0.7))
    pen.stroke((-0.7, -0.34), (0.7, -0.34), width=0.16)
    pen.stroke((-0.6, -0.05), (-0.92, 0.05), (-0.6, 0.2), width=0.12, layer="accent")
    pen.stroke((0.6, -0.05), (0.92, 0.05), (0.6, 0.2), width=0.12, layer="accent")
    pen.ellipse(0, -0.56, rng.uniform(0.1, 0.16), 0.12, layer="accent")


def boot(pen: Pen, rng: Rng) -> None:
    top = rng.uniform(-0.95, -0.8)
    pen.polygon((-0.55, top), (0.08, top), (0.12, 0.2), (0.72, 0.4), (0.82, 0.7), (-0.55, 0.7))
    pen.polygon(
        (-0.58, 0.7),
        (0.85, 0.7),
        (0.85, 0.9),
        (0.05, 0.9),
        (0.02, 0.8),
        (-0.2, 0.9),
        (-0.58, 0.9),
        layer="accent",
    )


def glove(pen: Pen, rng: Rng) -> None:
    pen.ellipse(0, 0.15, 0.46, 0.44)
    for x, tip in ((-0.36, -0.55), (-0.12, -0.8), (0.12, -0.84), (0.36, -0.62)):
        pen.stroke((x * 0.9, 0.1), (x * 1.15, tip + rng.uniform(-0.05, 0.05)), width=0.2)
    pen.stroke((0.3, 0.3), (0.8, -0.08), width=0.22)
    pen.polygon((-0.4, 0.5), (0.4, 0.5), (0.42, 0.95), (-0.42, 0.95), layer="accent")


def hat(pen: Pen, rng: Rng) -> None:
    w = rng.uniform(0.42, 0.52)
    pen.polygon((-w, 0.4), (-w * 0.9, -0.7), (w * 0.9, -0.7), (w, 0.4))
    pen.ellipse(0, 0.45, 0.98, 0.2)
    pen.polygon((-w, 0.32), (-w * 0.98, 0.08), (w * 0.98, 0.08), (w, 0.32), layer="accent")


def shirt(pen: Pen, rng: Rng) -> None:
    cuff = rng.uniform(0.0, 0.14)
    pen.polygon((-0.45, -0.75), (0.45, -0.75), (0.5, 0.85), (-0.5, 0.85))
    pen.polygon((-0.4, -0.75), (-0.98, -0.2 + cuff), (-0.72, 0.05 + cuff), (-0.4, -0.2))
    pen.polygon((0.4, -0.75), (0.98, -0.2 + cuff), (0.72, 0.05 + cuff), (0.4, -0.2))
    pen.ellipse(0, -0.78, 0.2, 0.16, cut=True)


def sock(pen: Pen, rng: Rng) -> None:
    toe = rng.uniform(0.5, 0.66)
    pen.stroke((-0.2, -0.75), (-0.2, 0.45), (toe, 0.62), width=0.5)
    pen.polygon((-0.46, -0.98), (0.06, -0.98), (0.06, -0.62), (-0.46, -0.62), layer="accent")


def flag(pen: Pen, rng: Rng) -> None:
    wave = rng.uniform(-0.1, 0.1)
    pen.stroke((-0.75, -0.92), (-0.75, 0.95), width=0.12, layer="accent")
    pen.polygon(
        (-0.7, -0.9), (0.1, -0.8 + wave), (0.92, -0.9), (0.92, 0.05), (0.1, 0.15 + wave), (-0.7, 0.05)
    )


def tie(pen: Pen, rng: Rng) -> None:
    w = rng.uniform(0.26, 0.34)
    pen.polygon((-0.2, -0.95), (0.2, -0.95), (0.13, -0.6), (-0.13, -0.6), layer="accent")
    pen.polygon((-0.13, -0.6), (0.13, -0.6), (w, 0.6), (0, 0.98), (-w, 0.6))


SHAPES: dict[str, Callable[[Pen, Rng], None]] = {
    shape.__name__: shape
    for shape in (
        apple, banana, carrot, lemon, mushroom, pear, cherry, onion,
        bell, hammer, key, spoon, sword, gear, pot,
        boot, glove, hat, shirt, sock, flag, tie,
    )
}  # fmt: skip
