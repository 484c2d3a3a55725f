"""Tar archives, plain or gzipped. They have no directory: every call reads one from its beginning."""

from __future__ import annotations

import gzip
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import IO, BinaryIO, Self

from refiner_cli.data.disk import format_size, os_errors_as
from refiner_cli.data.download.archive import COPY_BLOCK, Archive, copy_member
from refiner_cli.data.progress import Progress, Report, StoppedError
from refiner_cli.data.safe_paths import relative

_MAX_HEADER = 64 << 10  # bytes of an extended header; a path of 4096 bytes is the longest that Linux has
_EXTENDED = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}


class TarArchive(Archive):
    """A tar file of ordinary files and folders. Links that stay inside it are ignored."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        total = 0
        for info, _ in self._walk():
            self._count_member()
            if info.isreg():
                self._add(info.name, info.size)
                total += info.size
                self.refuse_bomb(total)
            elif info.isdir():
                self._add(info.name, None)
            else:
                self._refuse_unsafe(info)

    def read(self, name: str) -> bytes:
        self._refuse_large(name)
        content = b""
        for info, tar in self._walk():
            if info.isreg() and relative(info.name) == name:
                content = _content(tar, info).read()
        return content

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
            with os_errors_as(f"unpacking {self.path.name} to {first}"), self._reading():
                copy_member(_content(tar, info), first)
                for other in others:
                    shutil.copyfile(first, other)
            done += info.size * (1 + len(others))
            report(Progress("unpack", self.path.name, done, total))

    def check(self, report: Report, stop: Event) -> None:
        done, total = 0, sum(self.members.values())
        for info, tar in self._walk():
            if info.isreg():
                stream = _content(tar, info)
                while stream.read(COPY_BLOCK):
                    if stop.is_set():
                        raise StoppedError
                done += info.size
                report(Progress("check", self.path.name, done, total))

    def close(self) -> None:
        """Nothing stays open between calls."""

    def _walk(self) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
        """Every member, and the file to read it from before the next. Reads up to gzip's checksum."""
        with os_errors_as(f"reading {self.path}"):
            stream = self.path.open("rb")
        with stream, self._reading():
            gzipped = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            source = _CountedStream(gzip.GzipFile(fileobj=stream) if gzipped else stream, self)
            with tarfile.open(fileobj=source, mode="r|", tarinfo=LimitedTarInfo) as tar:  # type: ignore[call-overload]
                for info in tar_members(tar):
                    yield info, tar
            while source.read(COPY_BLOCK):  # the rest holds gzip's checksum
                pass


def tar_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar, none of which is kept. Raises ReadError at a sparse file or a negative size."""
    while info := tar.next():
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header that it has read
        if info.sparse is not None or info.size < 0:
            raise tarfile.ReadError(f"{info.name[:200]!r} is a sparse file")
        yield info


class LimitedTarInfo(tarfile.TarInfo):
    """A header that does not make tarfile read an extended header of any size into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            info = super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            # tarfile takes one behind the first member for the end, and the rest would be lost in silence.
            raise tarfile.ReadError(str(error)) from None
        if info.type in _EXTENDED and not 0 <= info.size <= _MAX_HEADER:
            raise tarfile.ReadError(f"an extended header claims {format_size(info.size)}")
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"{info.name[:200]!r} is a sparse file")
        return info


class _CountedStream:
    """A stream that gives no more than its archive may expand to, whatever the headers claim."""

    def __init__(self, stream: gzip.GzipFile | BinaryIO, archive: Archive) -> None:
        self._stream, self._archive, self._given = stream, archive, 0

    def read(self, count: int) -> bytes:
        block = self._stream.read(count)
        self._given += len(block)
        self._archive.refuse_bomb(self._given)
        return block


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(info)
    if stream is None:
        raise tarfile.ReadError(f"{info.name} has no content")
    return stream
