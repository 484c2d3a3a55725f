"""A compressed file as the stream of what is in it, recognised by its first bytes; bounded in memory."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any, Protocol

import pyarrow as pa

from refiner_cli.data.download.archive import MAX_EXPANSION
from refiner_cli.data.image_file import UnreadableError

PACKED_BLOCK = 1 << 16  # bytes that are read at once
MAX_DICTIONARY = 256 << 20  # bytes of memory that xz may take
EXPANSION_ALLOWANCE = 64 << 20  # bytes that any file may expand to
COMPRESSIONS: dict[bytes, str] = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


def compression_of(stream: io.BufferedReader) -> str | None:
    """How a file is compressed; None: not at all. Nothing is taken from the stream."""
    head = stream.peek(6)[:6]
    return next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), None)


def buffered(stream: IO[bytes]) -> io.BufferedReader:
    """A stream one can look ahead in."""
    raw: Any = stream
    return stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(raw, PACKED_BLOCK)


def unpack_stream(stream: io.BufferedReader, compression: str) -> Readable:
    """What is in a compressed stream."""
    counted = PackedStream(stream)
    makers: dict[str, Callable[[], Any]] = {
        "gzip": GzipMember,
        "bzip2": bz2.BZ2Decompressor,
        "xz": lambda: lzma.LZMADecompressor(memlimit=MAX_DICTIONARY),
    }
    if compression == "zstd":
        inner: Readable = pa.CompressedInputStream(pa.PythonFile(counted, "r"), "zstd")
    else:
        inner = UnpackedStream(counted, makers[compression])
    return BoundedStream(inner, counted)


class GzipMember:
    """One member of a gzip file, with the interface of the other decompressors."""

    def __init__(self) -> None:
        self.inner = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self.inner.eof

    @property
    def unused_data(self) -> bytes:
        return self.inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self.inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        return self.inner.decompress(self.inner.unconsumed_tail + data, max(0, max_length))


class PackedStream:
    """Counts the bytes that are read of a compressed file."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self.stream, self.given = stream, 0
        self.closed = False

    def read(self, size: int = -1, /) -> bytes:
        data = self.stream.read(size)
        self.given += len(data)
        return data

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """Closed by whoever opened it."""


class UnpackedStream:
    """Decompresses block by block, members of one file one after the other."""

    def __init__(self, packed: PackedStream, make: Callable[[], Any]) -> None:
        self.packed, self.make = packed, make
        self.inner, self.rest = make(), b""

    def read(self, size: int = -1, /) -> bytes:
        while True:
            if self.inner.eof:
                self.rest = (self.inner.unused_data or self.packed.read(PACKED_BLOCK)).lstrip(b"\0")
                if not self.rest:
                    return b""
                self.inner = self.make()
            data = self.rest or (self.packed.read(PACKED_BLOCK) if self.inner.needs_input else b"")
            self.rest = b""
            if not data and self.inner.needs_input:
                raise EOFError("it is cut short")
            if made := self.inner.decompress(data, size if size > 0 else PACKED_BLOCK):
                return bytes(made)


class BoundedStream:
    """Gives no more than a compressed file of its size may expand to."""

    def __init__(self, stream: Readable, packed: PackedStream) -> None:
        self.stream, self.packed, self.given = stream, packed, 0

    def read(self, size: int = -1, /) -> bytes:
        data = self.stream.read(size)
        self.given += len(data)
        if self.given > EXPANSION_ALLOWANCE + MAX_EXPANSION * self.packed.given:
            raise UnreadableError(f"it expands to more than {MAX_EXPANSION} times its size")
        return data
