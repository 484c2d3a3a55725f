"""Images of what the concept queries attend to."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from refiner_cli.data.crop import Pixels
from refiner_cli.files import atomic_file

MAP_SIDE = 192  # pixels of one map


def overlay(image: Image.Image, attention: Tensor) -> Image.Image:
    """Lay one query's attention over the image that the model saw.

    Args:
        image: RGB, cropped as the backbone crops.
        attention: ``L``, over the patches row by row, any scale.

    Returns:
        ``MAP_SIDE x MAP_SIDE`` RGB: grey where the query attends little, bright where most.
    """
    rows = round(math.sqrt(attention.numel() * image.height / image.width))  # patches are square
    grid = attention.float().reshape(rows, -1)
    grid = (grid - grid.min()) / (grid.max() - grid.min()).clamp_min(1e-12)
    heat = Image.fromarray((grid * 255).to(torch.uint8).cpu().numpy()).resize(
        (MAP_SIDE, MAP_SIDE), Image.Resampling.BICUBIC
    )
    photo = image.resize((MAP_SIDE, MAP_SIDE), Image.Resampling.BICUBIC)
    dim = Image.blend(ImageOps.grayscale(photo).convert("RGB"), Image.new("RGB", photo.size), 0.45)
    glow = ImageOps.colorize(heat, "black", "#ffd27a", mid="#c8321e")
    lit = Image.blend(photo, glow, 0.25)
    return Image.composite(lit, dim, heat)


def seen_by_model(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """The part of an image that the model sees: shorter side resized, centre cropped."""
    side = size if isinstance(size, int) else min(size)
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)


def draw_attention_map(file: Path, pixels: Pixels, attention: Tensor) -> None:
    """Write what every query attends to, over the photo: the photo first, then one tile per query.

    Args:
        file: a JPEG; its folder is made.
        pixels: ``H x W x 3``, as the model saw them.
        attention: ``K x L``, over the patches row by row.
    """
    photo = Image.fromarray(pixels)
    tiles = [photo.resize((MAP_SIDE, MAP_SIDE), Image.Resampling.BICUBIC)]
    tiles += [overlay(photo, query) for query in attention]
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * MAP_SIDE, rows * MAP_SIDE), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * MAP_SIDE, i // columns * MAP_SIDE))
    with atomic_file(file) as part:
        sheet.save(part, "JPEG", quality=85)
