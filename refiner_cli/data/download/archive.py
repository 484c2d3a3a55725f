"""What zip and tar archives have in common, read as if their makers meant harm.

Nothing is ever extracted to a place that an archive names. A caller picks members and a target for
each. Links are never created. An archive is refused as a whole if one of its names or links leaves
its folder, if it holds a device or a sparse file, or if it would expand absurdly. All limits hold
before memory is allocated. Open one with :func:`refiner_cli.data.download.content.open_archive`.
"""

from __future__ import annotations

import gzip
import os
import re
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import IO, Self

from refiner_cli.data.disk import format_size
from refiner_cli.data.progress import Report
from refiner_cli.data.safe_paths import relative
from refiner_cli.errors import FetchError

MAX_EXPANSION = 200  # times the archive's size; deflate reaches 1032, photos 1.1, text 10
MAX_MEMBERS = 1_000_000  # the largest known dataset has 100,000; one takes about 1 kB of memory
MAX_IN_MEMORY = 128 << 20  # bytes of a member that is read at once: pair lists and metadata
_ALLOWANCE = 64 << 20  # bytes that any archive may expand to, so that small ones need no ratio
_NOWHERE = os.path.join(os.sep, "nonexistent", "refiner")  # noqa: PTH118 - nothing is ever unpacked there
_UNTRUSTED = "Do not use it; get the archive from its publisher."
COPY_BLOCK = 1 << 20
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # a compression method or an encryption that zipfile does not have
    struct.error,
    ValueError,  # numbers in headers that are none, names that do not decode, seeks to nowhere
    OverflowError,
    IndexError,
    KeyError,
    RecursionError,  # headers of headers of headers
)


class ArchiveError(FetchError):
    """An archive that is damaged, hostile, not the published one, or not an archive."""

    def __init__(self, path: Path, problem: str, hint: str = _UNTRUSTED) -> None:
        super().__init__(f"The archive {path} {problem}.", hint=hint)
        self.path, self.problem = path, problem


class Archive(ABC):
    """The files in an archive.

    Attributes:
        members: size in bytes by safe relative name, in the archive's order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members: dict[str, int] = {}
        self._num_members = 0
        self.size = path.stat().st_size
        self.expansion_limit = max(_ALLOWANCE, MAX_EXPANSION * self.size)

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Read one member into memory. Raises ArchiveError if it is larger than ``MAX_IN_MEMORY``."""

    @abstractmethod
    def unpack(self, wanted: Mapping[Path, str], report: Report, stop: Event) -> None:
        """Write a member to each target, whose folder exists. Targets of an earlier run are kept.

        Raises:
            ArchiveError: the archive is damaged.
            StoppedError: ``stop`` was set; what is written so far stays.
        """

    @abstractmethod
    def check(self, report: Report, stop: Event) -> None:
        """Read everything against the archive's own checksums. Raises like :meth:`unpack`."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, name: str, length: int | None) -> str:
        """List a file and return its safe name. A folder (length None) is checked but not listed."""
        try:
            path = relative(name)
        except ValueError as reason:
            if length is None and not name.strip("./"):
                return ""  # the top folder itself
            raise ArchiveError(self.path, f"is refused: its member {name[:200]!r} is {reason}") from None
        if length is not None:
            if length < 0:
                raise ArchiveError(
                    self.path, f"is refused: the size of its member {name[:200]!r} is negative"
                )
            self.members[path] = length
        return path

    def _count_member(self) -> None:
        """Count a file, folder or link; two may have one name."""
        self._num_members += 1
        if self._num_members > MAX_MEMBERS:
            raise ArchiveError(self.path, f"is refused: it has more than {MAX_MEMBERS:,} members")

    def _refuse_unsafe(self, info: tarfile.TarInfo) -> None:
        """Refuse links that leave the archive, devices and pipes. Links that stay inside are ignored."""
        target = info.linkname.replace("\\", "/")
        try:
            safe = not re.match(r"[A-Za-z]:", target) and tarfile.data_filter(
                info.replace(linkname=target, deep=False), _NOWHERE
            )
        except (tarfile.FilterError, OSError, ValueError):
            safe = None
        if not safe:
            name = info.name[:200]
            if info.issym() or info.islnk():
                raise ArchiveError(self.path, f"is refused: its link {name!r} points to {target[:200]!r}")
            raise ArchiveError(self.path, f"is refused: its member {name!r} is a device or a pipe")

    def refuse_bomb(self, expanded: int) -> None:
        """Raise ArchiveError for more expanded bytes than an archive of this size may have."""
        if expanded > self.expansion_limit:
            raise ArchiveError(
                self.path,
                f"is refused: its {format_size(self.size)} would expand to more than "
                f"{format_size(self.expansion_limit)}",
            )

    def _refuse_large(self, name: str) -> None:
        if self.members[name] > MAX_IN_MEMORY:
            raise ArchiveError(
                self.path,
                f"is refused: its member {name!r} has {format_size(self.members[name])}, "
                f"more than the {format_size(MAX_IN_MEMORY)} that are read into memory",
            )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn whatever a damaged archive raises into an ArchiveError; errors of the disk pass."""
        try:
            yield
        except _BROKEN as error:
            raise ArchiveError(self.path, f"is damaged ({error})", "Get it again.") from error


def copy_member(source: IO[bytes], target: Path) -> None:
    """Write a stream to a new file."""
    # A file of that name may be a hard link into an older dataset: replace it, do not write through it.
    target.unlink(missing_ok=True)
    with target.open("xb") as stream:
        while block := source.read(COPY_BLOCK):
            stream.write(block)
