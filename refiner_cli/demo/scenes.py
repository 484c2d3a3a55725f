"""Scenes: one object in a state, on clutter made of pieces of other objects in other states.

This is the paper's problem on a small scale: a vector of the complete image mixes in the clutter, one of
the right region does not. An image is a function of its random generator alone, so the same seed gives the
same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from refiner_cli.data.labels import Pair
from refiner_cli.demo.shapes import SHAPES, Pen, Rng
from refiner_cli.demo.states import EFFECTS, Look, hue, material, noise

SIZE = 96  # pixels per side
CLUTTER = 6  # pieces per scene, on average


def look_of(pair: Pair, radius: float, rng: Rng) -> Look:
    """One object in its state on a square of about ``2.3 * radius`` pixels."""
    state, obj = pair
    size = max(12, int(2.3 * radius))
    angle = rng.normal(0, 0.35)
    pen = Pen(size, angle, math.exp(rng.normal(0, 0.07)))
    SHAPES[obj](pen, rng)
    body, accent = pen.masks()
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2.3 - 1.15
    x, y = axis[None, :], axis[:, None]
    u = x * math.cos(angle) + y * math.sin(angle)
    v = -x * math.sin(angle) + y * math.cos(angle)
    look = Look(rgb=np.empty((size, size, 3), np.float32), alpha=body, accent=accent, u=u, v=v)
    material(look, obj, rng)
    EFFECTS[state](look, rng)
    return look


@dataclass(frozen=True)
class Scene:
    """A drawn image, and how much of each of its pixels shows the object and how much shows clutter."""

    image: Image.Image  # SIZE x SIZE, RGB
    object: np.ndarray  # SIZE x SIZE in [0, 1]
    clutter: np.ndarray  # SIZE x SIZE in [0, 1]


def place(canvas: np.ndarray, look: Look, x: float, y: float) -> np.ndarray:
    """Lay a look over the canvas (``SIZE x SIZE x 3``), its centre at pixel (x, y).

    Returns:
        How much of each pixel it covers, ``SIZE x SIZE`` in [0, 1].
    """
    covered = np.zeros(canvas.shape[:2], np.float32)
    size = look.alpha.shape[0]
    left, top = round(x - size / 2), round(y - size / 2)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + size, canvas.shape[1]), min(top + size, canvas.shape[0])
    if x0 >= x1 or y0 >= y1:
        return covered
    part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    alpha = look.alpha[part][..., None]
    canvas[y0:y1, x0:x1] = canvas[y0:y1, x0:x1] * (1 - alpha) + look.rgb[part] * alpha
    covered[y0:y1, x0:x1] = look.alpha[part]
    return covered


def background(rng: Rng) -> np.ndarray:
    """A soft, muted background, ``SIZE x SIZE x 3``."""
    first, second = (hue(rng.random(), rng.uniform(0.05, 0.3), rng.uniform(0.3, 0.9)) for _ in range(2))
    weight = noise(rng, SIZE, int(rng.integers(1, 4)))[..., None]
    ground = np.asarray(first, np.float32) * weight + np.asarray(second, np.float32) * (1 - weight)
    return ground + rng.normal(0, 0.02, (SIZE, SIZE, 1)).astype(np.float32)


def fragment(pair: Pair, radius: float, rng: Rng) -> Look:
    """A piece of an object: one side of a cut through it."""
    look = look_of(pair, radius, rng)
    angle = rng.uniform(0, 2 * math.pi)
    side = look.u * math.cos(angle) + look.v * math.sin(angle) + rng.uniform(-0.15, 0.25)
    look.alpha = look.alpha * (side > 0)
    return look


def finish(canvas: np.ndarray, rng: Rng) -> Image.Image:
    """Exposure, then bytes."""
    canvas = canvas * rng.uniform(0.85, 1.1) + rng.uniform(-0.04, 0.04)
    return Image.fromarray((np.clip(canvas, 0, 1) * 255).astype(np.uint8))


def scene(pair: Pair, others: Sequence[Pair], rng: Rng, clutter: int = CLUTTER) -> Image.Image:
    """The image of :func:`draw_scene`."""
    return draw_scene(pair, others, rng, clutter).image


def draw_scene(pair: Pair, others: Sequence[Pair], rng: Rng, clutter: int = CLUTTER) -> Scene:
    """Draw ``pair`` in front of about ``clutter`` pieces of ``others``.

    The object is whole, the largest thing in the picture and off centre by a few pixels; a third
    of the pieces may lie over its rim.
    """
    canvas = background(rng)
    pieces = int(rng.poisson(clutter)) if clutter else 0
    x, y = rng.uniform(0.38, 0.62, 2) * SIZE
    radius = rng.uniform(0.27, 0.36) * SIZE
    own, other = np.zeros((2, SIZE, SIZE), np.float32)  # visible shares of object and clutter
    drawn = False
    for i in range(pieces + 1):
        if not drawn and (i == pieces or i >= pieces * 2 / 3):
            covered = place(canvas, look_of(pair, radius, rng), x, y)
            own, other = covered, other * (1 - covered)
            drawn = True
        if i == pieces:
            break
        turn, away = rng.uniform(0, 2 * math.pi), radius * rng.uniform(0.9, 1.7)
        piece = fragment(others[int(rng.integers(len(others)))], rng.uniform(0.17, 0.27) * SIZE, rng)
        covered = place(canvas, piece, x + away * math.cos(turn), y + away * math.sin(turn))
        own, other = own * (1 - covered), covered + other * (1 - covered)
    return Scene(finish(canvas, rng), own, other)


def gathering(pairs: Sequence[Pair], rng: Rng) -> Image.Image:
    """Draw all of ``pairs`` (one to four) complete and of similar size, each in its own corner."""
    canvas = background(rng)
    cells = [(0.29, 0.29), (0.71, 0.71), (0.29, 0.71), (0.71, 0.29)]
    order = rng.permutation(4)
    largest = 0.38 if len(pairs) == 1 else 0.29
    for pair, cell in zip(pairs, order, strict=False):
        radius = rng.uniform(0.2, largest)
        x, y = np.asarray(cells[cell] if radius < 0.3 else (0.5, 0.5)) + rng.uniform(-0.07, 0.07, 2)
        place(canvas, look_of(pair, radius * SIZE, rng), x * SIZE, y * SIZE)
    return finish(canvas, rng)
