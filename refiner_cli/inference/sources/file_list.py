"""A list of paths and addresses on standard input: one a line, or separated by NUL characters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import IO

from refiner_cli.inference.scan import ImageFile, PathFilter, list_files, read_list, row_name
from refiner_cli.inference.sources.source import PlaceSource, is_address
from refiner_cli.inference.sources.table import image_at

LIST_BLOCK = 1 << 16  # bytes


class FileList(PlaceSource):
    """The files, folders and addresses of a list; it can be read once."""

    is_container = False
    numbers_doubles = False

    def __init__(self, stream: IO[bytes], chosen: PathFilter, *, null: bool) -> None:
        super().__init__("-", chosen)
        self.null, self.digest, self.is_empty = null, hashlib.sha256(), True
        self.lines = self.noted(split_at_null(stream) if null else stream)

    def noted(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """The lines, which the digest takes in."""
        for line in lines:
            if path := line.rstrip(b"\r\n"):
                self.digest.update(path + b"\0")
                self.is_empty = False
            yield line

    @property
    def identity(self) -> str:
        """A digest of the list, which is read to its end; "" for an empty one."""
        for _ in self.lines:
            pass
        return "" if self.is_empty else self.digest.hexdigest()

    def images(self) -> Iterator[ImageFile]:
        for path in read_list(self.lines, null=self.null):
            if is_address(path):
                yield image_at(path, row_name(path))
            else:
                yield from list_files([path], self.chosen)


def split_at_null(stream: IO[bytes]) -> Iterator[bytes]:
    """The parts of a stream between NUL characters."""
    rest = b""
    while block := stream.read(LIST_BLOCK):
        *parts, rest = (rest + block).split(b"\0")
        yield from parts
    yield rest
