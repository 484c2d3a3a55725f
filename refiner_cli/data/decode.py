"""Decoding one image file, without PyTorch: what a decoding process has to know.

Any damaged file gives :class:`Unreadable` with a reason, never another exception: decoders meet
what the internet has in store, and raise whatever they like on it.
"""

from __future__ import annotations

import contextlib
import re
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

with contextlib.suppress(ImportError):  # an optional package
    import pillow_heif

    pillow_heif.register_heif_opener()

BACKGROUND = (255, 255, 255)  # what shows through transparent pixels
GAP = 2  # a JPEG is decoded to at least this many times the pixels that are asked for
ELONGATED = 16  # of an image longer than this times its width only the middle is resized
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"}
)
Image.init()
# Nothing else is tried, whatever the file says: some of Pillow's readers start other programs.
FORMATS: list[str] = [
    name
    for name in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "HEIF")
    if name in Image.OPEN
]
Pixels = npt.NDArray[np.uint8]


class UnreadableError(Exception):
    """Why a file gives no image, as words that follow "the image cannot be read: "."""


def read(file: Path, side: int | None = None) -> Image.Image:
    """Read an image file as upright RGB; of an animation the first frame.

    Args:
        file: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, and HEIC where pillow-heif is installed.
        side: pixels that the shorter side is needed with. A larger JPEG is then decoded at a half,
            a quarter or an eighth of its size, which saves most of the time, as long as
            ``GAP * side`` pixels are left.

    Raises:
        Unreadable: whatever is wrong with the file.
    """
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableError("it is a folder")
        if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
            raise UnreadableError("it is no regular file")
        if not status.st_size:
            raise UnreadableError("it is empty")
        with file.open("rb") as stream:
            return read_stream(stream, side)
    except FileNotFoundError:
        raise UnreadableError("it does not exist") from None
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from None


def read_stream(stream: IO[bytes], side: int | None = None) -> Image.Image:
    """:func:`read` from an open file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd but readable metadata
            with Image.open(stream, formats=FORMATS) as image:
                if side is not None:
                    image.draft(None, (GAP * side, GAP * side))
                image.load()
                # A damaged EXIF block must not cost a good picture.
                with contextlib.suppress(Exception):
                    ImageOps.exif_transpose(image, in_place=True)
                return to_rgb(image)
    except UnidentifiedImageError:
        stream.seek(4)
        if stream.read(8) in {b"ftypheic", b"ftypheix", b"ftypmif1"} and "HEIF" not in FORMATS:
            raise UnreadableError("HEIC needs the package pillow-heif (pip install pillow-heif)") from None
        raise UnreadableError("it is no image") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise UnreadableError(f"it has more than {limit:.0f} million pixels") from None
    except MemoryError:
        raise UnreadableError("there is not enough memory to decode it") from None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files
        # Addresses differ from run to run, rows must not.
        said = re.sub(r" at 0x[0-9a-fA-F]+", "", str(error)).strip() or type(error).__name__
        raise UnreadableError(f"it is damaged: {said}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: transparent pixels become white, numbers beyond 8 bits are scaled to 8.

    Integers count as 16-bit where one is above 255; floats as shares of white where none is above 1.
    """
    if image.mode.startswith("I;16") or image.mode in {"I", "F"}:
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        deep = image.mode.startswith("I;16") or (image.mode == "I" and values.max() > 255)
        scale = 1 / 257 if deep else 255 if image.mode == "F" and values.max() <= 1 else 1
        image = Image.fromarray((values * scale).clip(0, 255).astype(np.uint8), "L")
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class Crop:
    """The geometry of open_clip's preprocessing: resize, then crop or pad around the middle."""

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
        """Read a file as ``H x W x 3`` uint8. Raises Unreadable."""
        return np.asarray(self.fit(read(file, self.side)))


def centre_crop(image: Image.Image) -> Image.Image:
    """Cut the ends off an extremely long image: resized whole, a strip of one pixel fills the memory."""
    width, height = image.size
    wide, high = min(width, ELONGATED * height), min(height, ELONGATED * width)
    if (wide, high) == image.size:
        return image
    left, top = (width - wide) // 2, (height - high) // 2
    return image.crop((left, top, left + wide, top + high))
