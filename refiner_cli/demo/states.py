"""How states look: materials, and thirteen effects that change an object's appearance.

A :class:`Look` is one object on its own small square: colours ``h x w x 3`` and opacity ``h x w``,
float32 in [0, 1]. A state takes a look and changes it in place; ``u`` and ``v`` (``h x w``) are the
object's own coordinates, so a pattern turns and scales with the object.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from refiner_cli.demo.shapes import Rng
from refiner_cli.demo.vocabulary import kind_of

Array = np.ndarray

# Hue in turns; foods have a colour of their own, metals are grey, cloths any colour.
FOOD_HUES = {
    "apple": 0.98, "banana": 0.14, "carrot": 0.07, "lemon": 0.16, "mushroom": 0.06, "pear": 0.24,
    "cherry": 0.96, "onion": 0.86,
}  # fmt: skip
ACCENTS = {"food": (0.33, 0.45, 0.16), "metal": (0.45, 0.3, 0.18), "cloth": (0.2, 0.2, 0.24)}


@dataclass
class Look:
    """One object on its square."""

    rgb: Array  # h x w x 3
    alpha: Array  # h x w
    accent: Array  # h x w, where the accent colour is
    u: Array  # h x w, the object's own x in about [-1, 1]
    v: Array  # h x w, the object's own y

    def blend(self, where: Array, colour: Array | tuple[float, float, float]) -> None:
        """Mix ``colour`` in where ``where`` (h x w in [0, 1]) says."""
        weight = where[..., None]
        self.rgb = self.rgb * (1 - weight) + np.asarray(colour, np.float32) * weight

    @property
    def depth(self) -> Array:
        """How far inside the silhouette a point is: about 0 at the rim, 1 well inside."""
        return blur(self.alpha, 0.22)


def noise(rng: Rng, size: int, cells: int) -> Array:
    """Smooth noise, ``size x size`` in [0, 1], with ``cells`` bumps per side."""
    grid = Image.fromarray((rng.random((cells + 1, cells + 1)) * 255).astype(np.uint8))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255


def blur(mask: Array, share: float) -> Array:
    """A cheap blur by ``share`` of the side: down and up again."""
    size = mask.shape[0]
    small = max(2, round(size * (0.35 - share)))
    image = Image.fromarray((mask * 255).astype(np.uint8)).resize((small, small), Image.Resampling.BOX)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255


def ramp(x: Array, low: float, high: float) -> Array:
    """0 below ``low``, 1 above ``high``, straight between."""
    return np.clip((x - low) / (high - low), 0, 1)


def hue(h: float, s: float, v: float) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(h % 1.0, s, v)


def spots(rng: Rng, look: Look, count: int, low: float, high: float) -> Array:
    """``count`` discs of radius ``low`` to ``high``; 1 at a centre, 0 at and beyond its rim."""
    field = np.zeros_like(look.u)
    for _ in range(count):
        x, y, r = *rng.uniform(-0.85, 0.85, 2), rng.uniform(low, high)
        field = np.maximum(field, 1 - np.hypot(look.u - x, look.v - y) / r)
    return field


def material(look: Look, obj: str, rng: Rng) -> None:
    """Give the silhouette the colour and shading of its kind."""
    kind = kind_of(obj)
    shade = 0.78 + 0.22 * ramp(-look.u - look.v, -1.3, 1.0)
    if kind == "food":
        base = hue(FOOD_HUES[obj] + rng.normal(0, 0.02), rng.uniform(0.6, 0.85), rng.uniform(0.75, 0.95))
        if obj == "mushroom":
            base = hue(0.07, 0.35, rng.uniform(0.65, 0.85))
    elif kind == "metal":
        base = hue(0.6, rng.uniform(0.02, 0.12), rng.uniform(0.5, 0.68))
        shade = shade * (0.9 + 0.1 * np.sin(look.u * 9 + rng.uniform(0, 6)))
    else:
        base = hue(rng.random(), rng.uniform(0.25, 0.5), rng.uniform(0.6, 0.9))
        weave = np.sin(look.u * 38) * np.sin(look.v * 38)
        shade = shade * (0.94 + 0.06 * weave)
    look.rgb = np.asarray(base, np.float32) * shade[..., None]
    look.blend(look.accent, ACCENTS[kind])


def burnt(look: Look, rng: Rng) -> None:
    n = noise(rng, len(look.u), 6)
    side = look.u * np.cos(a := rng.uniform(0, 6.3)) + look.v * np.sin(a)
    char = ramp(n + 0.5 * side + 0.45 * (1 - look.depth), 0.35, 0.6)
    look.blend(ramp(n + 0.5 * side + 0.45 * (1 - look.depth), 0.2, 0.4) * 0.7, (0.45, 0.2, 0.05))
    look.blend(char, (0.07, 0.06, 0.06))


def dirty(look: Look, rng: Rng) -> None:
    n = noise(rng, len(look.u), 5)
    look.blend(ramp(n, 0.42, 0.55) * 0.85, (0.33, 0.24, 0.12))
    look.blend(ramp(noise(rng, len(look.u), 14), 0.66, 0.74) * 0.8, (0.2, 0.14, 0.07))


def frozen(look: Look, rng: Rng) -> None:
    look.blend(np.full_like(look.u, 0.6), (0.72, 0.88, 0.98))
    for _ in range(5):
        t, shift = rng.uniform(0, np.pi), rng.uniform(-0.7, 0.7)
        line = np.abs(look.u * np.cos(t) + look.v * np.sin(t) - shift)
        look.blend(1 - ramp(line, 0.02, 0.07), (1.0, 1.0, 1.0))
    rim = look.alpha * (1 - ramp(look.depth, 0.45, 0.75))
    look.blend(rim * 0.8, (0.95, 0.98, 1.0))


def wet(look: Look, rng: Rng) -> None:
    look.rgb = look.rgb * 0.72
    drops = spots(rng, look, 13, 0.1, 0.21)
    look.blend(ramp(drops, 0.0, 0.12) * 0.75, (0.35, 0.62, 0.95))
    look.blend(ramp(drops, 0.55, 0.75), (0.95, 0.98, 1.0))


def broken(look: Look, rng: Rng) -> None:
    wave = 0.16 * (np.abs(((look.u * 2.6 + rng.random()) % 1) * 2 - 1) - 0.5)
    crack = np.abs(look.v + wave + rng.uniform(-0.25, 0.25) + 0.35 * look.u * rng.uniform(-1, 1))
    look.alpha = look.alpha * ramp(crack, 0.1, 0.15)
    look.blend(1 - ramp(crack, 0.15, 0.24), (0.12, 0.1, 0.1))


def painted(look: Look, rng: Rng) -> None:
    h = rng.random()
    drip = look.v + 0.3 * noise(rng, len(look.u), 5) + 0.25 * np.sin(look.u * 8 + rng.uniform(0, 6))
    look.blend(1 - ramp(drip, 0.32, 0.38), hue(h, 0.95, 0.95))
    look.blend(ramp(spots(rng, look, 5, 0.14, 0.26), 0.0, 0.1), hue(h + 0.45, 0.95, 0.95))


def rotten(look: Look, rng: Rng) -> None:
    look.rgb = look.rgb * np.asarray((0.62, 0.58, 0.42), np.float32)
    fur = spots(rng, look, 7, 0.2, 0.38) + 0.25 * (noise(rng, len(look.u), 18) - 0.5)
    look.blend(ramp(fur, 0.05, 0.2), (0.75, 0.8, 0.72))
    look.blend(ramp(fur, 0.25, 0.45), (0.3, 0.42, 0.3))


def sliced(look: Look, rng: Rng) -> None:
    phase = (look.v * 2.4 + 0.5 * look.u * rng.uniform(-0.5, 0.5) + rng.random()) % 1
    look.alpha = look.alpha * ramp(np.abs(phase - 0.5), 0.08, 0.13)
    look.blend(ramp(phase, 0.55, 0.62) * (1 - ramp(phase, 0.8, 0.86)), (0.99, 0.96, 0.82))


def polished(look: Look, rng: Rng) -> None:
    look.rgb = look.rgb * 1.08 + 0.06
    band = np.abs(look.u * 0.8 + look.v * 0.6 + rng.uniform(-0.2, 0.3))
    look.blend((1 - ramp(band, 0.1, 0.2)) * 0.95, (1.0, 1.0, 1.0))
    look.blend((1 - ramp(np.abs(band - 0.42), 0.03, 0.07)) * 0.9, (0.15, 0.17, 0.22))


def rusty(look: Look, rng: Rng) -> None:
    n = 0.55 * noise(rng, len(look.u), 6) + 0.45 * noise(rng, len(look.u), 20)
    look.blend(ramp(n, 0.36, 0.5) * 0.95, (0.66, 0.3, 0.1))
    look.blend(ramp(n, 0.56, 0.64), (0.38, 0.15, 0.06))


def striped(look: Look, rng: Rng) -> None:
    t = rng.choice([0.0, np.pi / 2, np.pi / 4])
    wave = np.sin((look.u * np.cos(t) + look.v * np.sin(t)) * rng.uniform(11, 15) + rng.uniform(0, 6))
    look.blend(ramp(wave, -0.15, 0.15), hue(rng.random(), 0.8, rng.choice([0.25, 1.0])))


def torn(look: Look, rng: Rng) -> None:
    n = noise(rng, len(look.u), 5) + 0.4 * (noise(rng, len(look.u), 16) - 0.5)
    hole = ramp(n + 0.25 * (1 - look.depth), 0.62, 0.67)
    look.alpha = look.alpha * (1 - hole)
    look.blend(ramp(n + 0.25 * (1 - look.depth), 0.54, 0.6), (0.93, 0.9, 0.84))


def dotted(look: Look, rng: Rng) -> None:
    f = rng.uniform(5.5, 7)
    grid = np.sin(look.u * f + rng.uniform(0, 6)) * np.sin(look.v * f + rng.uniform(0, 6))
    look.blend(ramp(np.abs(grid), 0.5, 0.6), hue(rng.random(), 0.8, rng.choice([0.25, 1.0])))


EFFECTS: dict[str, Callable[[Look, Rng], None]] = {
    effect.__name__: effect
    for effect in (
        burnt, dirty, frozen, wet, broken, painted, rotten, sliced, polished, rusty, striped, torn, dotted,
    )
}  # fmt: skip
