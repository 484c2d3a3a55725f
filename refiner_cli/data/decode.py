"""Decoding one image file to upright RGB, without PyTorch and, for most files, without NumPy.

Any damaged file gives :class:`UnreadableError` with a reason, never another exception. Memory is
bounded by the pixels that the file's header states (see :class:`DecodeLimits`): the decoded image,
and at most one RGB image of the same size.
"""

from __future__ import annotations

import contextlib
import math
import stat
from pathlib import Path
from typing import IO, TYPE_CHECKING

from PIL import ExifTags, Image

from refiner_cli.data.box import Box
from refiner_cli.data.image_file import DecodeLimits, MissingFileError, UnreadableError, open_image
from refiner_cli.files import reason_of

if TYPE_CHECKING:  # a process that only verifies images starts without NumPy
    import numpy as np
    import numpy.typing as npt

BACKGROUND = (255, 255, 255)  # what shows through transparent pixels
DRAFT_FACTOR = 2  # a JPEG is decoded to at least this many times the requested side
STRIP_PIXELS = 1 << 22  # larger images are converted in strips, so that intermediate copies stay small
REDUCED_PIXELS = 48_000_000  # a larger image of any format is reduced before it is converted
_TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = {
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
}
_ALPHA_MODES = {"RGBA", "LA", "PA", "La", "RGBa"}


def read(
    file: Path, side: int | None = None, limits: DecodeLimits | None = None, box: Box | None = None
) -> Image.Image:
    """Read an image file as upright RGB; of an animation the first frame.

    Args:
        file: an image of :data:`refiner_cli.data.image_file.IMAGE_FORMATS`.
        side: pixels that the shorter side is needed with. A larger JPEG is then decoded at a half,
            a quarter or an eighth of its size, which saves most of the time, as long as
            ``DRAFT_FACTOR * side`` pixels are left; a very large image of another format is reduced.
        limits: what decoding may cost; by default :func:`refiner_cli.data.image_file.default_limits`.
        box: the part that is wanted; ``side`` counts for it. None: the complete image.

    Raises:
        UnreadableError: whatever is wrong with the file; MissingFileError where there is none.
    """
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableError("it is a folder")
        if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
            raise UnreadableError("it is not a regular file")
        if not status.st_size:
            raise UnreadableError("it is empty")
        with file.open("rb") as stream:
            return read_stream(stream, side, limits, box)
    except FileNotFoundError:
        raise MissingFileError("it does not exist") from None
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise UnreadableError(reason_of(error)) from None


def read_stream(
    stream: IO[bytes],
    side: int | None = None,
    limits: DecodeLimits | None = None,
    box: Box | None = None,
) -> Image.Image:
    """:func:`read` from an open file that can seek."""
    with open_image(stream, limits) as image:
        size = image.size
        if side is not None and box is not None:
            side = box.enlarge(side, *size)
        if side is not None:
            image.draft(None, (DRAFT_FACTOR * side, DRAFT_FACTOR * side))
        image.load()
        factor = 1
        if side is not None and image.width * image.height > REDUCED_PIXELS:
            factor = max(1, min(image.size) // (DRAFT_FACTOR * side))
        transpose = _exif_transpose(image)
        pixels = to_rgb(image, factor)
    if transpose is not None:
        pixels = pixels.transpose(transpose)
        size = size[::-1] if transpose in _TURNED else size
    return pixels if box is None else cut_box(pixels, box, size)


def cut_box(pixels: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """A box of an upright image that had ``size`` pixels before it was reduced. Raises UnreadableError."""
    left, top, right, bottom = box.region(*size)
    x, y = pixels.width / size[0], pixels.height / size[1]
    first = (min(int(left * x), pixels.width - 1), min(int(top * y), pixels.height - 1))
    last = (max(first[0] + 1, math.ceil(right * x)), max(first[1] + 1, math.ceil(bottom * y)))
    return pixels.crop((*first, min(last[0], pixels.width), min(last[1], pixels.height)))


def _exif_transpose(image: Image.Image) -> Image.Transpose | None:
    """How to turn or mirror an image, by its EXIF orientation; a damaged EXIF block costs no image."""
    with contextlib.suppress(Exception):
        return _TRANSPOSE_OF_ORIENTATION.get(int(image.getexif()[ExifTags.Base.Orientation]))
    return None


def to_rgb(image: Image.Image, factor: int = 1) -> Image.Image:
    """Any mode to RGB: transparent pixels become white, numbers beyond 8 bits are scaled to 8.

    Integers count as 16-bit where one is above 255; floats as shares of white where none is above 1.
    With a ``factor``, blocks of ``factor x factor`` pixels become one.
    """
    image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.reduce(factor) if factor > 1 else image
    scale = _deep_scale(image)
    rows = max(1, STRIP_PIXELS // image.width // factor) * factor
    if rows >= image.height:
        return _strip_to_rgb(image, scale, factor)
    complete = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        complete.paste(_strip_to_rgb(strip, scale, factor), (0, top // factor))
    return complete


def _strip_to_rgb(image: Image.Image, scale: float | None, factor: int) -> Image.Image:
    if scale is not None:
        values = _finite_values(image) * scale
        image = Image.fromarray(values.clip(0, 255).astype("uint8"))
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(ground, image)
    image = image.convert("RGB")
    return image.reduce(factor) if factor > 1 else image


def _deep_scale(image: Image.Image) -> float | None:
    """What takes the values of a mode with more than 8 bits to 0..255; None for any other mode."""
    if image.mode.startswith("I;16"):
        return 1 / 257
    if image.mode not in {"I", "F"}:
        return None
    rows = max(1, STRIP_PIXELS // image.width)
    highest = max(
        _finite_values(image.crop((0, top, image.width, min(top + rows, image.height)))).max()
        for top in range(0, image.height, rows)
    )
    if image.mode == "I":
        return 1 / 257 if highest > 255 else 1
    return 255 if highest <= 1 else 1


def _finite_values(image: Image.Image) -> npt.NDArray[np.float64]:
    """``H x W`` float64, with 0 for NaN."""
    import numpy as np

    return np.nan_to_num(np.asarray(image).astype(np.float64))
