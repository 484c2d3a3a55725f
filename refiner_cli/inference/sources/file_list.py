"""A list of paths and addresses on standard input: one a line, or separated by NUL characters."""

from __future__ import annotations

from collections.abc import Iterator
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
        self.stream, self.null = stream, null

    def images(self) -> Iterator[ImageFile]:
        lines = split_at_null(self.stream) if self.null else self.stream
        for path in read_list(lines, null=self.null):
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
