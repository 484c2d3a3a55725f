"""Images: decode a file, preprocess it as the backbone wants, augment it for training.

Every random choice of an augmentation is a function of (seed, epoch, index), so that neither the
number of workers nor an interruption changes a single pixel.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision import transforms

from refiner_cli.errors import DatasetError

BACKGROUND = (255, 255, 255)  # what shows through transparent pixels


def decode(file: Path) -> Image.Image:
    """Read an image as upright RGB. Raises DatasetError with the path if it cannot be read."""
    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("ignore")  # odd but readable metadata
            return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise DatasetError(f"The image {file} does not exist.") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DatasetError(f"The image {file} cannot be read ({reason}).") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB; transparent pixels become white, 16-bit grey is scaled to 8."""
    if image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


class Preprocess:
    """What the backbone was trained with: resize, crop, normalise -> ``3 x H x W`` float32."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.pipeline = open_clip.transform.image_transform_v2(
            open_clip.transform.PreprocessCfg(**config), is_train=False
        )

    def __call__(self, image: Image.Image) -> Tensor:
        pixels: Tensor = self.pipeline(image)
        return pixels


class Augment:
    """The recipe the field shares, before preprocessing: flip, perspective, small rotation.

    Flip with probability 0.5, perspective with probability 0.5 and distortion 0.5, rotation by up
    to 5 degrees, all on the resized and cropped picture.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        size = config["size"]
        side = size if isinstance(size, int) else min(size)
        bicubic = transforms.InterpolationMode.BICUBIC
        self.pipeline = transforms.Compose(
            [
                transforms.Resize(side, bicubic),
                transforms.CenterCrop(side),
                transforms.RandomHorizontalFlip(),
                transforms.RandomPerspective(0.5, 0.5, bicubic),
                transforms.RandomRotation(5, bicubic),
                transforms.ToTensor(),
                transforms.Normalize(config["mean"], config["std"]),
            ]
        )

    def __call__(self, image: Image.Image, seed: int) -> Tensor:
        """``3 x H x W`` float32; ``seed`` decides every random choice."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pixels: Tensor = self.pipeline(image)
        return pixels


def seed_of(*parts: int) -> int:
    """A 63-bit seed that differs for any two tuples of numbers, for all practical purposes."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
