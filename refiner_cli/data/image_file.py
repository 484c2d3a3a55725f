"""Opening an image file: which formats are read, and how much one file may cost.

The only module that calls Pillow's ``open`` on files of other people. Every other module of the
package comes through :func:`open_image`, so that what a dataset takes, training and prediction read
too, and nothing else: some of Pillow's readers (EPS, WMF) start other programs.

An image is judged by its header, before any pixel is decoded. Knows neither PyTorch nor NumPy.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import IO, Any

from PIL import Image, ImageFile, UnidentifiedImageError

from refiner_cli.errors import ConfigError

with contextlib.suppress(ImportError):  # the optional extra "heif"
    import pillow_heif

    pillow_heif.register_heif_opener()

Image.init()
# Pillow's names of the formats that are read, and the endings their files have.
SUFFIXES_BY_FORMAT = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
IMAGE_FORMATS: list[str] = [name for name in SUFFIXES_BY_FORMAT if name in Image.OPEN]
# HEIC belongs to the list without its package, too: such a photo must be reported, not passed over.
IMAGE_SUFFIXES = frozenset(suffix for some in SUFFIXES_BY_FORMAT.values() for suffix in some)

MAX_SCANS = 64  # of a progressive JPEG: encoders write about ten, each costs a pass over the image
MAX_SCANNED = 4_000  # megapixels times scans
BYTES_PER_PIXEL = 8  # of the largest file that can be an image of so many pixels: 16-bit RGBA
LARGE_WEBP = 100_000_000  # pixels; WebP's decoder takes 16 bytes for each
PIXELS_PER_BYTE = 1000  # of a photo's file, however strongly it is compressed
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"hevc"}
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # neither a stuffed zero nor a restart
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


class UnreadableError(Exception):
    """Why a file gives no image, as words that follow "the image cannot be read: "."""


class MissingFileError(UnreadableError):
    """The file does not exist."""


@dataclass(frozen=True)
class DecodeLimits:
    """What decoding one image may cost. No real photo of 200 megapixels exceeds the defaults.

    Attributes:
        megapixels: width times height; 250 take at most 2 GB.
        seconds: time for one image; 0 sets no limit. It ends a decoder that reads its file piece by
            piece (JPEG, PNG, GIF, BMP). The others decode in one call, whose time the pixels bound.
    """

    megapixels: float = 250
    seconds: float = 60

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> DecodeLimits:
        """From ``REFINER_MAX_MEGAPIXELS`` and ``REFINER_DECODE_SECONDS``. Raises ConfigError."""
        return cls(
            _number(environment, "REFINER_MAX_MEGAPIXELS", cls.megapixels, least=1e-6),
            _number(environment, "REFINER_DECODE_SECONDS", cls.seconds, least=0),
        )


def _number(environment: Mapping[str, str], name: str, default: float, *, least: float) -> float:
    text = environment.get(name, "").strip()
    try:
        value = float(text or default)
    except ValueError:
        value = float("nan")
    if not least <= value < float("inf"):
        raise ConfigError(
            f"{name} is {text!r}, which is not a number of at least {least:g}.",
            hint=f"Unset it for the default, {default:g}.",
        )
    return value


@cache
def default_limits() -> DecodeLimits:
    """The limits of this process and of those it starts. Raises ConfigError."""
    limits = DecodeLimits.from_environment(os.environ)
    if Image.MAX_IMAGE_PIXELS is not None:  # Pillow's own limit, 179 megapixels, is below a phone's 200
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, int(limits.megapixels * 1e6))
    return limits


@contextlib.contextmanager
def open_image(stream: IO[bytes], limits: DecodeLimits | None = None) -> Iterator[ImageFile.ImageFile]:
    """Open an image, without decoding it; any failure inside of the block becomes UnreadableError.

    Raises:
        UnreadableError: the file is not an image of :data:`IMAGE_FORMATS`, is damaged, or exceeds the limits.
    """
    limits = limits or default_limits()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd but readable metadata
            _require_plausible_file(stream, limits)
            timed: Any = DeadlineStream(stream, limits.seconds) if limits.seconds else stream
            with Image.open(timed, formats=IMAGE_FORMATS) as image:
                _require_pixels(*image.size, limits)
                _require_few_scans(image, stream, limits)
                yield image
    except (UnreadableError, ConfigError):
        raise
    except UnidentifiedImageError:
        raise UnreadableError(_unidentified(stream)) from None
    except Image.DecompressionBombError:
        raise UnreadableError(_too_large(limits)) from None
    except DecodeTimeoutError:
        seconds = f"{limits.seconds:g} seconds, the limit (REFINER_DECODE_SECONDS)"
        raise UnreadableError(f"decoding it takes more than {seconds}") from None
    except MemoryError:
        raise UnreadableError("there is not enough memory to decode it") from None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files
        # Addresses differ from run to run, rows must not.
        said = re.sub(r" at 0x[0-9a-fA-F]+", "", str(error)).strip() or type(error).__name__
        raise UnreadableError(f"it is damaged: {said}") from None


def _unidentified(stream: IO[bytes]) -> str:
    """Why Pillow found no format among ours."""
    stream.seek(0)
    start = stream.read(12)
    if start[4:8] == b"ftyp" and start[8:] in _HEIC_BRANDS and "HEIF" not in IMAGE_FORMATS:
        return "HEIC needs the package pillow-heif: pip install pillow-heif"
    return "it is not an image in a supported format"


# --- limits ---------------------------------------------------------------------------------------


class DecodeTimeoutError(Exception):
    """An image was not decoded in its time."""


class DeadlineStream:
    """A binary stream whose ``read`` raises once the time is up, wherever in a decoder that is.

    Works in any thread and on any system, unlike an alarm signal.
    """

    def __init__(self, stream: IO[bytes], seconds: float) -> None:
        self._stream = stream
        self._end = time.monotonic() + seconds

    def read(self, size: int = -1) -> bytes:
        if time.monotonic() > self._end:
            raise DecodeTimeoutError
        return self._stream.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _require_plausible_file(stream: IO[bytes], limits: DecodeLimits) -> None:
    """Before Pillow states a size, some readers take in the complete file, and WebP's reserves its pixels."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if size > limits.megapixels * 1e6 * BYTES_PER_PIXEL:
        raise UnreadableError(f"its file of {size / 1e9:.1f} GB is too large for an image")
    start = stream.read(32)
    stream.seek(0)
    if webp := webp_size(start):
        _require_pixels(*webp, limits)
        if webp[0] * webp[1] > max(LARGE_WEBP, size * PIXELS_PER_BYTE):
            raise UnreadableError(f"its {size:,} bytes cannot be a photo of {webp[0]} x {webp[1]} pixels")


def webp_size(start: bytes) -> tuple[int, int] | None:
    """Width and height from the first 32 bytes of a WebP file; None for any other."""
    if start[:4] != b"RIFF" or start[8:12] != b"WEBP" or len(start) < 30:
        return None
    kind, little = start[12:16], int.from_bytes
    if kind == b"VP8X":
        return little(start[24:27], "little") + 1, little(start[27:30], "little") + 1
    if kind == b"VP8L":
        bits = little(start[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return little(start[26:28], "little") & 0x3FFF, little(start[28:30], "little") & 0x3FFF


def _require_pixels(width: int, height: int, limits: DecodeLimits) -> None:
    if width * height > limits.megapixels * 1e6:
        raise UnreadableError(_too_large(limits, width, height))


def _too_large(limits: DecodeLimits, width: int = 0, height: int = 0) -> str:
    size = f" ({width} x {height})" if width else ""
    return (
        f"it has more than {limits.megapixels:g} million pixels{size}; REFINER_MAX_MEGAPIXELS sets the limit"
    )


def _require_few_scans(image: ImageFile.ImageFile, stream: IO[bytes], limits: DecodeLimits) -> None:
    """A file of a few kilobytes can make a decoder pass over all pixels a thousand times."""
    tiles: Any = getattr(image, "tag_v2", {})
    _require_pixels(int(tiles.get(322, 0)), int(tiles.get(323, 0)), limits)  # of a TIFF; may exceed the image
    if "progressive" not in image.info and "progression" not in image.info:
        return
    place = stream.tell()
    scans = count_scans(stream)
    stream.seek(place)
    allowed = min(MAX_SCANS, max(1.0, MAX_SCANNED * 1e6 / (image.width * image.height)))
    if scans > allowed:
        raise UnreadableError(f"it is a progressive JPEG of {scans} scans, more than {allowed:.0f}")


def count_scans(stream: IO[bytes]) -> int:
    """The scans of the first image of a JPEG file."""
    try:
        content: Any = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # not a file of the system
        stream.seek(0)
        content = stream.read()
    scans, place = 0, 2
    while found := _JPEG_MARKER.search(content, place):
        marker, place = content[found.start() + 1], found.end()
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        if marker != 0x01:  # every other marker that can stand here begins a segment with its length
            place += int.from_bytes(content[place : place + 2], "big")
    if isinstance(content, mmap.mmap):
        del found
        content.close()
    return scans
