"""Pictures of what the concept queries look at."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from refiner_cli.data.crop import Pixels
from refiner_cli.files import atomic_file

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


def draw_attention_map(file: Path, pixels: Pixels, looks: Tensor) -> None:
    """Write what every query looks at, over the photo: the photo first, then one picture a query.

    Args:
        file: a JPEG; its folder is made.
        pixels: ``H x W x 3``, as the model saw them.
        looks: ``K x L``, over the patches row by row.
    """
    photo = Image.fromarray(pixels)
    pictures = [photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC)] + [overlay(photo, one) for one in looks]
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * SIDE, rows * SIDE), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * SIDE, i // columns * SIDE))
    with atomic_file(file) as part:
        sheet.save(part, "JPEG", quality=85)
