"""The geometry of open_clip's preprocessing, without PyTorch: what a decoding process has to know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from refiner_cli.data.decode import read

ELONGATED = 16  # of an image longer than this times its width only the middle is resized
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Crop:
    """Resize, then crop or pad around the middle."""

    height: int
    width: int
    mode: str = "shortest"  # the side that is fitted: shortest, longest, or squash for both
    resample: Image.Resampling = Image.Resampling.BICUBIC
    fill: int = 0  # grey of the padding

    @classmethod
    def of(cls, config: dict[str, Any]) -> Crop:
        """From open_clip's preprocessing configuration."""
        size = config["size"]
        height, width = (size, size) if isinstance(size, int) else size
        mode = config.get("resize_mode") or "shortest"
        square_or_free = mode != "shortest" or height == width
        bilinear = config.get("interpolation") == "bilinear" and square_or_free  # as open_clip has it
        resample = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
        return cls(height, width, mode, resample, config.get("fill_color") or 0)

    @property
    def side(self) -> int:
        """Pixels that the shorter side of a photo should not be below."""
        return max(self.height, self.width)

    def fit(self, image: Image.Image) -> Image.Image:
        """RGB of any size -> ``width x height``."""
        image = centre_crop(image)
        size = self.resized(*image.size)
        if size != image.size:
            image = image.resize(size, self.resample)
        left, top = round((image.width - self.width) / 2), round((image.height - self.height) / 2)
        if image.width < self.width or image.height < self.height:
            ground = Image.new("RGB", (self.width, self.height), (self.fill,) * 3)
            # Where there is an odd number of pixels too few, the longer part goes to the far side.
            ground.paste(
                image,
                (
                    (self.width - image.width) // 2 if image.width < self.width else -left,
                    (self.height - image.height) // 2 if image.height < self.height else -top,
                ),
            )
            return ground
        return image.crop((left, top, left + self.width, top + self.height))

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """The size of an image before the crop."""
        if self.mode == "squash":
            return self.width, self.height
        if self.mode == "shortest" and self.width == self.height:
            if width <= height:
                return self.width, int(self.width * height / width)
            return int(self.height * width / height), self.height
        pick = max if self.mode == "longest" else min
        ratio = pick(width / self.width, height / self.height)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def load(self, file: Path) -> Pixels:
        """Read a file as ``H x W x 3`` uint8. Raises UnreadableError."""
        return self.frame(read(file, self.side))

    def frame(self, image: Image.Image) -> Pixels:
        """RGB of any size -> ``H x W x 3`` uint8."""
        return np.asarray(self.fit(image))


def centre_crop(image: Image.Image) -> Image.Image:
    """Cut the ends off an extremely long image: resized completely, a strip of one pixel fills the memory."""
    width, height = image.size
    wide, high = min(width, ELONGATED * height), min(height, ELONGATED * width)
    if (wide, high) == image.size:
        return image
    left, top = (width - wide) // 2, (height - high) // 2
    return image.crop((left, top, left + wide, top + high))
