"""Tar archives and WebDataset shards, also compressed ones: their members stay where they are.

A local tar that is not compressed is only listed, and every image is read by the process that decodes it.
Any other is read once, from front to back. Links in it are not followed.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refiner_cli.data.download.tar_archive import LimitedTarInfo, tar_members
from refiner_cli.inference.scan import FileVersion, ImageFile
from refiner_cli.inference.sources.content import MAX_CONTENT, Content, Failed, FileSlice, Loaded
from refiner_cli.inference.sources.source import DAMAGES
from refiner_cli.inference.sources.stored import ArchiveSource
from refiner_cli.inference.sources.unpacked import buffered, compression_of, unpack_stream

STREAM_BLOCK = 1 << 18  # bytes
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")


class TarSource(ArchiveSource):
    """The images of one tar."""

    separators = "/"

    def images(self) -> Iterator[ImageFile]:
        self.complete = True
        version = self.store.version()
        try:
            with buffered(self.store.open()) as stream:
                packed = compression_of(stream)
                listed = self.store.local if packed is None else None
                source: Any = unpack_stream(stream, packed) if packed else stream
                # tarfile's own stream takes any object with a method read.
                mode: Any = "r:" if listed else "r|"
                with tarfile.open(
                    fileobj=source, mode=mode, tarinfo=LimitedTarInfo, bufsize=STREAM_BLOCK
                ) as tar:
                    for info in tar_members(tar):
                        if image := self.member(info, tar, listed, version):
                            yield image
        except DAMAGES as error:
            yield self.damaged(error)

    def member(
        self, info: tarfile.TarInfo, tar: tarfile.TarFile, listed: Path | None, version: FileVersion
    ) -> ImageFile | None:
        """The entry of a member; None for a folder or what is not asked for."""
        if info.isdir():
            return None
        return self.member_image(info.name, version, info.size, lambda: self.content(info, tar, listed))

    def content(self, info: tarfile.TarInfo, tar: tarfile.TarFile, listed: Path | None) -> Content:
        if info.issym() or info.islnk():
            return Failed("it is a link, and links in archives are not followed")
        if not info.isreg():
            return Failed("it is not a regular file")
        if info.size > MAX_CONTENT:
            return Failed("it is too large for an image")
        if listed:
            return FileSlice(listed, info.offset_data, info.size)
        stream = tar.extractfile(info)
        if stream is None:
            return Failed("it has no content")
        data = stream.read()
        if len(data) < info.size:
            raise EOFError("it is cut short")
        return Loaded(data)
