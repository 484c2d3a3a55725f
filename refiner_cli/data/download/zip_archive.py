"""Zip archives: listed from their directory, members read in any order."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from threading import Event

from refiner_cli.data.disk import format_size, os_errors_as
from refiner_cli.data.download.archive import COPY_BLOCK, Archive, ArchiveError, copy_member
from refiner_cli.data.progress import Progress, Report, StoppedError

_MAX_DIRECTORY = 64 << 20  # bytes; 60,000 photos take 6 MB, and zipfile needs ten times as much memory
_MAX_LINK = 4096  # bytes of a link's target


class ZipArchive(Archive):
    """A zip file with stored or deflated members; other compressions have no bound on their memory."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._infos: dict[str, zipfile.ZipInfo] = {}
        with os_errors_as(f"reading {path}"):
            self._stream = LimitedReads(io.FileIO(path))
            try:
                with self._reading():
                    self._zip = zipfile.ZipFile(self._stream)
                    self._list()
            except BaseException:
                self._stream.close()
                raise

    def read(self, name: str) -> bytes:
        self._refuse_large(name)
        with self._reading():
            return self._zip.read(self._readable(self._infos[name]))

    def unpack(self, wanted: Mapping[Path, str], report: Report, stop: Event) -> None:
        done, total = 0, sum(self.members[name] for name in wanted.values())
        for target, name in wanted.items():
            if stop.is_set():
                raise StoppedError
            info = self._readable(self._infos[name])
            if not _is_unpacked(target, info.file_size, info.CRC):
                with (
                    os_errors_as(f"unpacking {self.path.name} to {target}"),
                    self._reading(),
                    self._zip.open(info) as source,
                ):
                    copy_member(source, target)
            done += info.file_size
            report(Progress("unpack", self.path.name, done, total))

    def check(self, report: Report, stop: Event) -> None:
        done, total = 0, sum(self.members.values())
        for info in self._infos.values():
            with self._reading(), self._zip.open(self._readable(info)) as source:
                while source.read(COPY_BLOCK):
                    if stop.is_set():
                        raise StoppedError
            done += info.file_size
            report(Progress("check", self.path.name, done, total))

    def close(self) -> None:
        self._zip.close()
        self._stream.close()

    def _list(self) -> None:
        infos = self._zip.infolist()
        # A truncated zip may end in a complete one that it holds (metadata saved by torch.save is one).
        if infos and min(info.header_offset for info in infos) != 0:
            raise zipfile.BadZipFile("its end is missing")
        for info in infos:
            self._count_member()
            if stat.S_ISLNK(info.external_attr >> 16):
                with self._zip.open(self._readable(info)) as source:
                    target = source.read(_MAX_LINK)
                link = tarfile.TarInfo(info.filename)
                link.type, link.linkname = tarfile.SYMTYPE, target.decode("utf-8", "replace")
                self._refuse_unsafe(link)
            elif info.is_dir():
                self._add(info.filename, None)
            else:
                self._infos[self._add(info.filename, info.file_size)] = info
        self.refuse_bomb(sum(info.file_size for info in self._infos.values()))

    def _readable(self, info: zipfile.ZipInfo) -> zipfile.ZipInfo:
        if info.flag_bits & 1:
            raise ArchiveError(self.path, "is encrypted", "Unpack it, and pack it again without a password.")
        if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ArchiveError(
                self.path,
                f"cannot be read: its member {info.filename[:200]!r} is not compressed by deflate",
                "Unpack it, and pack it again as an ordinary zip.",
            )
        return info


class LimitedReads(io.BufferedReader):
    """A file that refuses to be read in huge pieces; zipfile reads a directory of any size at once."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except OSError as error:
            raise zipfile.BadZipFile(f"it points to its byte {offset}") from error

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory claims {format_size(size)}")
        return super().read(size)


def _is_unpacked(target: Path, length: int, crc: int) -> bool:
    """Whether an earlier run has written this member completely."""
    try:
        if target.stat().st_size != length or target.is_symlink():
            return False
        with target.open("rb") as stream:
            found = 0
            while block := stream.read(COPY_BLOCK):
                found = zlib.crc32(block, found)
    except OSError:
        return False
    return found == crc
