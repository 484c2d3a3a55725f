"""Pictures of what the concept queries look at."""

from __future__ import annotations

import math

import torch
from PIL import Image, ImageOps
from torch import Tensor

SIDE = 192  # pixels of one picture


def overlay(image: Image.Image, attention: Tensor) -> Image.Image:
    """Lay one query's attention over the picture that the model saw.

    Args:
        image: RGB, cropped as the backbone crops.
        attention: ``L``, over the patches row by row, any scale.

    Returns:
        ``SIDE x SIDE`` RGB: dark and grey where the query does not look, bright and warm where it does.
    """
    side = math.isqrt(attention.numel())
    grid = attention.float().reshape(side, side)
    grid = (grid - grid.min()) / (grid.max() - grid.min()).clamp_min(1e-12)
    heat = Image.fromarray((grid * 255).to(torch.uint8).cpu().numpy(), "L").resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    photo = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    dim = Image.blend(ImageOps.grayscale(photo).convert("RGB"), Image.new("RGB", photo.size), 0.45)
    glow = ImageOps.colorize(heat, "black", "#ffd27a", mid="#c8321e")
    lit = Image.blend(photo, glow, 0.25)
    return Image.composite(lit, dim, heat)


def seen_by_model(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """The part of an image that the model sees: shorter side resized, centre cropped."""
    side = size if isinstance(size, int) else min(size)
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
