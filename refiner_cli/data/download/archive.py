"""Zip and tar archives, read as if whoever made them meant harm.

Nothing is ever extracted to where an archive says. A caller names the members it wants and a target
for each; links are never made; and an archive is refused as a whole if a name in it leaves its
folder, if a link in it points out of it, or if it would expand absurdly.
"""

from __future__ import annotations

import gzip
import posixpath
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import IO, BinaryIO, Self

from refiner_cli.data.disk import format_size, os_errors_as
from refiner_cli.data.download.content import sniff_content
from refiner_cli.data.progress import Progress, Report, StoppedError
from refiner_cli.data.safe_paths import relative
from refiner_cli.errors import FetchError

MAX_EXPANSION = 200  # deflate reaches 1032; photos 1.1, text 10
_ALLOWANCE = 64 << 20  # bytes any archive may expand to, so that small ones need no ratio
_BLOCK = 1 << 20
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # a compression method or an encryption that zipfile does not have
    struct.error,
    UnicodeDecodeError,
)


class ArchiveError(FetchError):
    """An archive that is damaged, hostile, or no archive."""

    def __init__(self, path: Path, wrong: str, hint: str) -> None:
        super().__init__(f"The archive {path} {wrong}.", hint=hint)
        self.path = path


class Archive(ABC):
    """The files in an archive. Use :func:`open_archive`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members: dict[str, int] = {}  # safe relative name -> size in bytes, in the archive's order
        self._limit = max(_ALLOWANCE, MAX_EXPANSION * path.stat().st_size)

    @abstractmethod
    def read(self, name: str) -> bytes:
        """One member, in memory."""

    @abstractmethod
    def unpack(self, wanted: Mapping[Path, str], report: Report, stop: Event) -> None:
        """Write a member to each target, whose folder exists. What an earlier run has written is kept.

        Raises:
            ArchiveError: the archive is damaged.
            StoppedError: ``stop`` was set; what is written so far stays.
        """

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _admit(self, name: str, length: int | None) -> None:
        """List a file, or refuse the archive for its name. A folder has no length and is not listed."""
        try:
            path = relative(name)
        except ValueError as reason:
            if length is None and not name.strip("./"):
                return  # the top folder itself
            raise ArchiveError(
                self.path, f"is refused: its member {name!r} is {reason}", _ELSEWHERE
            ) from None
        if length is not None:
            self.members[path] = length

    def _refuse_link(self, name: str, target: str, *, from_root: bool) -> None:
        """Links are never made, but one that points out of the archive tells what the archive is for."""
        base = "" if from_root else posixpath.dirname(name)
        to = target.replace("\\", "/")
        if posixpath.normpath(posixpath.join(base, to)).startswith(("/", "..")) or re.match(r"[A-Za-z]:", to):
            raise ArchiveError(self.path, f"is refused: its link {name!r} points to {target!r}", _ELSEWHERE)

    def _refuse_bomb(self, expanded: int) -> None:
        if expanded > self._limit:
            raise ArchiveError(
                self.path,
                f"is refused: its {format_size(self.path.stat().st_size)} would expand to more than "
                f"{format_size(self._limit)}",
                _ELSEWHERE,
            )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except _BROKEN as error:
            raise _damaged(self.path, error) from error


class ZipArchive(Archive):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self._reading(), os_errors_as(f"reading {path}"):
            self._zip = zipfile.ZipFile(path)
        self._infos: dict[str, zipfile.ZipInfo] = {}
        try:
            with self._reading():
                self._list()
        except BaseException:
            self.close()
            raise

    def _list(self) -> None:
        # A torn zip may end in a whole one that it holds (metadata saved by torch.save is one).
        if self._zip.infolist() and min(info.header_offset for info in self._zip.infolist()) != 0:
            raise zipfile.BadZipFile("its end is missing")
        for info in self._zip.infolist():
            mode = info.external_attr >> 16
            if stat.S_ISLNK(mode):
                self._refuse_link(
                    info.filename, self._zip.read(info)[:4096].decode("utf-8", "replace"), from_root=False
                )
            elif info.is_dir():
                self._admit(info.filename, None)
            else:
                self._admit(info.filename, info.file_size)
                self._infos[relative(info.filename)] = info
        self._refuse_bomb(sum(info.file_size for info in self._infos.values()))

    def read(self, name: str) -> bytes:
        with self._reading():
            return self._zip.read(self._open_info(name))

    def unpack(self, wanted: Mapping[Path, str], report: Report, stop: Event) -> None:
        done, total = 0, sum(self.members[name] for name in wanted.values())
        for target, name in wanted.items():
            if stop.is_set():
                raise StoppedError
            info = self._open_info(name)
            if not _is_there(target, info.file_size, info.CRC):
                with (
                    self._reading(),
                    os_errors_as(f"unpacking {self.path.name} to {target}"),
                    self._zip.open(info) as source,
                ):
                    _copy(source, target)
            done += info.file_size
            report(Progress("unpack", self.path.name, done, total))

    def _open_info(self, name: str) -> zipfile.ZipInfo:
        info = self._infos[name]
        if info.flag_bits & 1:
            raise ArchiveError(self.path, "is encrypted", "Unpack it and pack it again without a password.")
        return info

    def close(self) -> None:
        self._zip.close()


class TarArchive(Archive):
    """A tar file, plain or gzipped. It has no directory, so that every call reads it from its beginning."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for info, _ in self._walk():
            if info.issym() or info.islnk():
                self._refuse_link(info.name, info.linkname, from_root=info.islnk())
            elif info.isreg():
                self._admit(info.name, info.size)
            elif info.isdir():
                self._admit(info.name, None)
            else:
                raise ArchiveError(path, f"is refused: {info.name!r} is a device or a pipe", _ELSEWHERE)

    def read(self, name: str) -> bytes:
        found = b""
        for info, tar in self._walk():
            if info.isreg() and relative(info.name) == name:
                found = _file(tar, info).read()
        return found

    def unpack(self, wanted: Mapping[Path, str], report: Report, stop: Event) -> None:
        done, total = 0, sum(self.members[name] for name in wanted.values())
        targets: dict[str, list[Path]] = {}
        for target, name in wanted.items():
            targets.setdefault(name, []).append(target)
        for info, tar in self._walk():
            if stop.is_set():
                raise StoppedError
            if not info.isreg() or relative(info.name) not in targets:
                continue
            first, *others = targets[relative(info.name)]
            with self._reading(), os_errors_as(f"unpacking {self.path.name} to {first}"):
                _copy(_file(tar, info), first)
                for other in others:
                    shutil.copyfile(first, other)
            done += info.size * (1 + len(others))
            report(Progress("unpack", self.path.name, done, total))

    def close(self) -> None:
        """Nothing stays open between calls."""

    def _walk(self) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
        with os_errors_as(f"reading {self.path}"):
            stream = self.path.open("rb")
        with stream, self._reading():
            gzipped = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            source = _Counted(gzip.GzipFile(fileobj=stream) if gzipped else stream, self)
            with tarfile.open(fileobj=source, mode="r|") as tar:  # type: ignore[call-overload]
                for info in tar:
                    yield info, tar


class _Counted:
    """A stream that refuses to give more than its archive may expand to, whatever its headers claim."""

    def __init__(self, stream: gzip.GzipFile | BinaryIO, archive: Archive) -> None:
        self._stream, self._archive, self._given = stream, archive, 0

    def read(self, count: int) -> bytes:
        block = self._stream.read(count)
        self._given += len(block)
        self._archive._refuse_bomb(self._given)  # noqa: SLF001 - one unit with the class above
        return block


def open_archive(path: Path) -> Archive:
    """Open a zip or a tar archive, by its content.

    Raises:
        ArchiveError: it is no archive (an error page that was saved as one is named), damaged, or refused.
        FetchError: it cannot be read.
    """
    with os_errors_as(f"reading {path}"), path.open("rb") as stream:
        head = stream.read(4096)
    if kind := sniff_content(head):
        raise ArchiveError(path, f"is no archive but {kind}", "Fetch it again, or by hand in a browser.")
    return ZipArchive(path) if head.startswith(b"PK") else TarArchive(path)


_ELSEWHERE = "Do not use it; get the archive from its publisher."


def _damaged(path: Path, error: Exception) -> ArchiveError:
    return ArchiveError(path, f"is damaged ({error})", "Get it again.")


def _file(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(info)
    if stream is None:
        raise tarfile.ReadError(f"{info.name} has no content")
    return stream


def _copy(source: IO[bytes], target: Path) -> None:
    # A file of that name may be a hard link into an older dataset: make a new one, do not write through it.
    target.unlink(missing_ok=True)
    with target.open("xb") as stream:
        while block := source.read(_BLOCK):
            stream.write(block)


def _is_there(target: Path, length: int, crc: int) -> bool:
    """Whether an earlier run has written this member completely."""
    try:
        if target.stat().st_size != length or target.is_symlink():
            return False
        with target.open("rb") as stream:
            found = 0
            while block := stream.read(_BLOCK):
                found = zlib.crc32(block, found)
    except OSError:
        return False
    return found == crc
