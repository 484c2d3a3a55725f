"""Folders and single files of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from refiner_cli.inference.scan import ImageFile, PathFilter, row_name, walk
from refiner_cli.inference.sources.source import PlaceSource


class FolderSource(PlaceSource):
    """The images below a folder; see :mod:`refiner_cli.inference.scan`."""

    numbers_doubles = False

    def __init__(self, place: str, chosen: PathFilter) -> None:
        super().__init__(place, chosen)
        self.folder: Path = Path(place)

    def images(self) -> Iterator[ImageFile]:
        return walk(self.folder, "", self.chosen)


class FileSource(PlaceSource):
    """One image file, under the path that was given."""

    is_container = False
    numbers_doubles = False

    def images(self) -> Iterator[ImageFile]:
        file = Path(self.place)
        yield ImageFile(file, row_name(file.as_posix()))
