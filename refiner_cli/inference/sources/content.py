"""Where the bytes of one image are: in a part of a file, in memory, behind an address, or nowhere.

A content is small (unless it holds the bytes) and can be sent to another process, which reads it there.
None reads more than :data:`MAX_CONTENT` bytes, whatever a header claims.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from refiner_cli.data.box import Box
from refiner_cli.data.crop import Crop, Pixels
from refiner_cli.data.decode import read, read_stream
from refiner_cli.data.disk import format_size
from refiner_cli.data.image_file import UnreadableError
from refiner_cli.files import reason_of

MAX_CONTENT = 128 << 20  # bytes of an image that is read into memory; the largest photos have 100 MB
MEMBER_HEADER = 30  # bytes of a zip member's own header, before its name


class Content(Protocol):
    """The bytes of an image."""

    @property
    def remote(self) -> bool:
        """Whether reading waits for another machine, so that it is done ahead, many at a time."""

    def read(self) -> bytes:
        """All of them. Raises UnreadableError or OSError."""


@dataclass(frozen=True)
class Failed:
    """What cannot be read, and why."""

    reason: str
    remote = False

    def read(self) -> bytes:
        raise UnreadableError(self.reason)


@dataclass(frozen=True)
class Loaded:
    """Bytes in memory."""

    data: bytes
    remote = False

    def read(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class FileSlice:
    """A part of a file, such as a member of a tar."""

    file: Path
    offset: int
    size: int
    remote = False

    def read(self) -> bytes:
        require_loadable(self.size)
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            data = stream.read(self.size)
        if len(data) < self.size:
            raise UnreadableError("its archive is cut short")
        return data


@dataclass(frozen=True)
class ZipMember:
    """A stored or deflated member of a zip."""

    file: Path
    header: int  # offset of the member's own header
    packed: int  # bytes in the file
    size: int  # bytes of the image
    deflated: bool
    checksum: int
    remote = False

    def read(self) -> bytes:
        require_loadable(self.size)
        require_loadable(self.packed)
        with self.file.open("rb") as stream:
            stream.seek(self.header)
            own = stream.read(MEMBER_HEADER)
            if len(own) < MEMBER_HEADER or own[:4] != b"PK\x03\x04":
                raise UnreadableError("its archive is damaged: it has no header there")
            skipped = int.from_bytes(own[26:28], "little") + int.from_bytes(own[28:30], "little")
            stream.seek(skipped, io.SEEK_CUR)
            data = stream.read(self.packed)
        return inflate(data, self.size, self.checksum) if self.deflated else checked(data, self.checksum)


def inflate(data: bytes, size: int, checksum: int) -> bytes:
    """The deflated bytes of a zip member; never more than it claims to have. Raises UnreadableError."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        made = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise UnreadableError(f"its archive is damaged: {error}") from None
    if len(made) != size:
        raise UnreadableError("it has another size than its archive says")
    return checked(made, checksum)


def checked(data: bytes, checksum: int) -> bytes:
    if zlib.crc32(data) != checksum:
        raise UnreadableError("its checksum is wrong")
    return data


def require_loadable(size: int) -> None:
    """Raise UnreadableError for an image of more bytes than are read into memory."""
    if size > MAX_CONTENT:
        raise UnreadableError(
            f"its {format_size(size)} are more than the {format_size(MAX_CONTENT)} that are read into memory"
        )


@dataclass(frozen=True)
class DecodeTask:
    """What a decoding process gets: where the bytes are, and which part of the image is wanted."""

    content: Path | Content
    box: Box | None = None

    def load(self, crop: Crop) -> Pixels:
        """``H x W x 3`` uint8. Raises UnreadableError."""
        return crop.frame(self.image(crop.side))

    def image(self, side: int) -> Image.Image:
        if isinstance(self.content, Path):
            return read(self.content, side, box=self.box)
        try:
            data = self.content.read()
        except (OSError, MemoryError) as error:
            raise UnreadableError(reason_of(error)) from None
        if not data:
            raise UnreadableError("it is empty")
        return read_stream(io.BytesIO(data), side, box=self.box)
