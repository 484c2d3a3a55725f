"""What every kind of source has in common: a stream of images, each under a name of its own."""

from __future__ import annotations

import csv
import lzma
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from refiner_cli.data.image_file import UnreadableError
from refiner_cli.data.safe_paths import is_foreign
from refiner_cli.errors import FetchError
from refiner_cli.files import reason_of
from refiner_cli.inference.scan import (
    NO_FILTER,
    UNKNOWN_VERSION,
    FileVersion,
    ImageFile,
    PathFilter,
    name_digest,
    row_name,
)
from refiner_cli.inference.sources.content import Failed

# What a damaged archive or table makes its reader raise.
DAMAGES = (
    OSError,
    EOFError,
    UnreadableError,
    FetchError,
    csv.Error,
    lzma.LZMAError,
    pa.ArrowException,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    ValueError,
    OverflowError,
    IndexError,
    KeyError,
    RecursionError,
    MemoryError,
)


class PlaceSource(ABC):
    """Where images come from.

    Attributes:
        place: where it lies.
        given: what the names of its images begin with, where there are several places.
        identity: what two runs must have in common to continue each other.
        complete: whether the last pass came across every image there is.
    """

    is_container: ClassVar[bool] = True  # names are relative to it
    is_unit: ClassVar[bool] = False  # one unit of work, however many images it holds
    numbers_doubles: ClassVar[bool] = True  # a second image of one name gets a number; else it is passed over
    carries_inputs: ClassVar[bool] = False  # says more about its images than where they are
    folder: Path | None = None  # the local folder that names are relative to

    def __init__(self, place: str, chosen: PathFilter = NO_FILTER) -> None:
        self.place, self.given, self.chosen = place, place, chosen
        self.complete = False

    @property
    def identity(self) -> str:
        return identify_place(self.place)

    @property
    def lists_all(self) -> bool:
        """Whether an image that the last pass did not come across is gone."""
        return self.complete and not self.chosen.include and not self.chosen.exclude

    @abstractmethod
    def images(self) -> Iterator[ImageFile]:
        """Every image, in a fixed order; what cannot be read is one with the reason.

        The names are relative to the place, and need not be unique.
        """

    def failed(self, name: str, reason: str, version: FileVersion = UNKNOWN_VERSION) -> ImageFile:
        """The entry of what cannot be read; "" names the place itself."""
        where = f"{self.place}/{name}" if name else self.place
        return ImageFile(Path(where), name, Failed(reason), version, shown=row_name(where))

    def damaged(self, error: BaseException) -> ImageFile:
        """The entry of the place itself, which is damaged or cannot be read on."""
        self.complete = False
        return self.failed("", reason_of(error))


def is_address(place: str) -> bool:
    """Whether a place is an address (``https://``, ``s3://``) rather than a path of this machine."""
    return "://" in place


def identify_place(place: str) -> str:
    """A place as a later command finds it, wherever that is started; UTF-8 text."""
    return row_name(place if is_address(place) else str(Path(place).resolve()))


def takes_member(path: str, chosen: PathFilter) -> bool:
    """Whether a member of an archive or of a bucket counts; ``path`` is relative, with slashes."""
    *folders, name = path.split("/")
    if is_foreign(name, folder=False) or any(is_foreign(folder, folder=True) for folder in folders):
        return False
    below = ("/".join(folders[: i + 1]) for i in range(len(folders)))
    return chosen.takes(path) and not any(map(chosen.leaves_out, below))


def with_unique_names(images: Iterable[ImageFile], *, number: bool, taken: set[bytes]) -> Iterator[ImageFile]:
    """Every name once: a further image of one name is called ``name#2``, or passed over.

    Args:
        taken: the digests of the names so far.
    """
    last: dict[bytes, int] = {}  # the number that the last image of a name got: all may have the same
    for image in images:
        name, key = image.name, name_digest(image.name)
        if key in taken:
            if not number:
                continue
            first, count = key, last.get(key, 1)
            while key in taken:
                count += 1
                name = f"{image.name}#{count}"
                key = name_digest(name)
            last[first] = count
        taken.add(key)
        yield image if name == image.name else replace(image, name=name)
