"""Where an archive or a table lies: it is read from front to back, or in any order."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Protocol

from refiner_cli.inference.scan import FileVersion


class Store(Protocol):
    """One file, here or on another machine."""

    @property
    def local(self) -> Path | None:
        """Its path, if it is a file of this machine."""

    def open(self) -> IO[bytes]:
        """Open it to be read from front to back. Raises OSError or FetchError."""

    def open_seekable(self) -> IO[bytes]:
        """Open it to be read in any order. Raises OSError or FetchError."""

    def version(self) -> FileVersion:
        """Its size and when it was modified."""


class LocalFile:
    """A file of this machine."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @property
    def local(self) -> Path:
        return self.file

    def open(self) -> IO[bytes]:
        return self.file.open("rb")

    def open_seekable(self) -> IO[bytes]:
        return self.file.open("rb")

    def version(self) -> FileVersion:
        return FileVersion.of(self.file)
