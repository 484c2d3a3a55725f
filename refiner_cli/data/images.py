"""Images as tensors: decode a file, preprocess it as the backbone wants, augment it for training.

Every random choice of an augmentation is a function of (seed, epoch, index), so that neither the
number of workers nor an interruption changes a single pixel. An augmentation has two halves: the process
that decodes makes a frame of 8-bit pixels, the device normalises whole batches of frames.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms

from refiner_cli.data.crop import Crop, Pixels
from refiner_cli.data.decode import read
from refiner_cli.data.image_file import UnreadableError, default_limits
from refiner_cli.errors import UnreadableImageError


def decode(file: Path, side: int | None = None) -> Image.Image:
    """Read an image as upright RGB. Raises UnreadableImageError with the path if it cannot be read.

    Args:
        side: as in :func:`refiner_cli.data.decode.read`.
    """
    try:
        return read(file, side)
    except UnreadableError as error:
        raise UnreadableImageError(f"The image {file} cannot be read ({error}).") from None


class Preprocess:
    """What the backbone was trained with: resize, crop, normalise -> ``3 x H x W`` float32.

    ``config`` is open_clip's preprocessing configuration.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        default_limits()  # a limit that is not a number is reported here, and not by a decoding process
        self.crop = Crop.of(config)
        self.mean = torch.tensor(config["mean"])[:, None, None]
        self.std = torch.tensor(config["std"])[:, None, None]

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB of any size -> ``3 x H x W``."""
        return self.normalise(torch.from_numpy(self.frame(image)))

    def frame(self, image: Image.Image) -> Pixels:
        """RGB of any size -> ``H x W x 3`` uint8, not normalised."""
        return np.array(self.crop.fit(image))

    def normalise(self, pixels: Tensor) -> Tensor:
        """``... x H x W x 3`` uint8 -> ``... x 3 x H x W`` float32, on the device of the pixels."""
        values = pixels.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format).div(255)
        return values.sub_(self.beside(self.mean, values)).div_(self.beside(self.std, values))

    @staticmethod
    def beside(constant: Tensor, values: Tensor) -> Tensor:
        """A few numbers on the device of others, without waiting for what it still computes."""
        return constant.to(values.device, non_blocking=values.is_cuda)


class Published:
    """The augmentation the field shares: flip, perspective, small rotation.

    Flip with probability 0.5, perspective with probability 0.5 and distortion 0.5 (bilinear), rotation by
    up to 5 degrees (nearest pixel), all on the image as the backbone frames it: published code leaves
    torchvision's defaults, so they stay here.
    """

    side: int | None = None  # decoded in full, as published: a reduced image has other pixels

    def __init__(self, config: dict[str, Any]) -> None:
        self.preprocess = Preprocess(config)
        self.change = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.RandomPerspective(),
                transforms.RandomRotation(5),
            ]
        )

    def frame(self, image: Image.Image, seed: int) -> Pixels:
        """``H x W x 3`` uint8; ``seed`` decides every random choice."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return np.array(self.change(self.preprocess.crop.fit(image)))

    def finish(self, frames: Tensor, seeds: Sequence[int]) -> Tensor:  # noqa: ARG002 - frame() used them
        """Frames ``B x H x W x 3`` uint8 -> ``B x 3 x H x W`` float32, on their device."""
        return self.preprocess.normalise(frames)


class Affine:
    """Flip, turn, scale and shift, with mirrored edges, after preprocessing.

    Flip with probability 0.5, up to 15 degrees, a factor of up to e^0.15, up to a twelfth of the side. No
    corner turns black, which small pictures suffer from.
    """

    TURN, SCALE, SHIFT = math.pi / 12, 0.15, 1 / 6  # of the side, which is 2 to grid_sample

    def __init__(self, config: dict[str, Any]) -> None:
        self.preprocess = Preprocess(config)
        self.side = self.preprocess.crop.side

    def frame(self, image: Image.Image, seed: int) -> Pixels:  # noqa: ARG002 - finish() uses it
        """``H x W x 3`` uint8, before the random changes."""
        return self.preprocess.frame(image)

    def finish(self, frames: Tensor, seeds: Sequence[int]) -> Tensor:
        """Frames ``B x H x W x 3`` uint8 -> ``B x 3 x H x W`` float32, on their device.

        ``seeds`` decide every random choice.
        """
        pixels = self.preprocess.normalise(frames)
        maps = torch.stack([self.affine_map(seed, pixels.shape[-2] / pixels.shape[-1]) for seed in seeds])
        grid = F.affine_grid(self.preprocess.beside(maps, pixels), list(pixels.shape), align_corners=False)
        return F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)

    def affine_map(self, seed: int, ratio: float) -> Tensor:
        """From the view to the frame, ``2 x 3``; ``ratio`` is height by width: the grid runs from -1 to 1."""
        chance = torch.rand(5, generator=torch.Generator().manual_seed(seed))
        turn, scale, x, y = (
            (2 * chance[:4] - 1) * torch.tensor([self.TURN, self.SCALE, *[self.SHIFT] * 2])
        ).tolist()
        flip, zoom = -1 if chance[4] < 0.5 else 1, math.exp(scale)
        cos, sin = zoom * math.cos(turn), zoom * math.sin(turn)
        return torch.tensor([[flip * cos, -sin * ratio, x], [flip * sin / ratio, cos, y]])


Augment = Published | Affine
AUGMENTS: dict[str, type[Augment]] = {"published": Published, "affine": Affine}


def seed_of(*parts: int) -> int:
    """A 63-bit seed that differs for any two tuples of numbers, for all practical purposes."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
