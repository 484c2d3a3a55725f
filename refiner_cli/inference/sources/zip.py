"""Zip archives: their members stay where they are, and are read in any order."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Iterator
from typing import Any

from refiner_cli.data.download.zip_archive import LimitedReads
from refiner_cli.files import reason_of
from refiner_cli.inference.scan import FileVersion, ImageFile
from refiner_cli.inference.sources.content import MAX_CONTENT, Content, Failed, Loaded, ZipMember
from refiner_cli.inference.sources.source import DAMAGES
from refiner_cli.inference.sources.stored import ArchiveSource

IS_ENCRYPTED, IS_UTF8 = 0x1, 0x800  # bits of a member's flags


class ZipSource(ArchiveSource):
    """The images of one zip."""

    separators = "/\\"

    def images(self) -> Iterator[ImageFile]:
        self.complete = True
        version = self.store.version()
        try:
            stream: Any = self.store.open_seekable()
            raw = stream.detach() if isinstance(stream, io.BufferedReader | io.BufferedRandom) else stream
            with LimitedReads(raw) as limited, zipfile.ZipFile(limited) as archive:
                for info in archive.infolist():
                    if image := self.member(info, archive, version):
                        yield image
        except DAMAGES as error:
            yield self.damaged(error)

    def member(
        self, info: zipfile.ZipInfo, archive: zipfile.ZipFile, version: FileVersion
    ) -> ImageFile | None:
        """The entry of a member; None for a folder or what is not asked for."""
        stored = member_name(info)
        if stored.endswith("/"):
            return None
        return self.member_image(stored, version, info.file_size, lambda: self.content(info, archive))

    def content(self, info: zipfile.ZipInfo, archive: zipfile.ZipFile) -> Content:
        if reason := why_unreadable(info):
            return Failed(reason)
        local = self.store.local
        if local:
            return ZipMember(local, info.header_offset, info.compress_size, info.file_size,
                             info.compress_type == zipfile.ZIP_DEFLATED, info.CRC)  # fmt: skip
        try:
            return Loaded(archive.read(info))
        except DAMAGES as error:
            return Failed(reason_of(error))


def why_unreadable(info: zipfile.ZipInfo) -> str:
    """Why a member is not read; "" if nothing speaks against it."""
    if info.flag_bits & IS_ENCRYPTED:
        return "it is encrypted; unpack the archive, and pack it again without a password"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "it is a link, and links in archives are not followed"
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        return "it is not compressed by deflate; pack the archive again as an ordinary zip"
    return "it is too large for an image" if max(info.file_size, info.compress_size) > MAX_CONTENT else ""


def member_name(info: zipfile.ZipInfo) -> str:
    """The name of a member. Where nothing says that it is UTF-8 it is that all the same if it can be.

    The standard's other encoding is cp437; macOS and many others write UTF-8 without saying so.
    """
    if info.flag_bits & IS_UTF8:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename
