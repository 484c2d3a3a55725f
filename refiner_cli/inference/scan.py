"""Find the images of files, folders and lists: lazily, in a fixed order, each under a name of its own.

Hidden files and folders are left out. Links to files are followed; links to folders are not, as
they lead to the same images twice or in a circle. A place given by hand is always followed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import blake2b
from pathlib import Path

from refiner_cli.data.image_file import IMAGE_SUFFIXES
from refiner_cli.errors import UsageError


@dataclass(frozen=True)
class ImageFile:
    """One image file and the name it goes by: its path relative to the given folder, with slashes."""

    file: Path
    name: str


@dataclass(frozen=True)
class PathFilter:
    """Which files of a folder count; patterns as in a shell, on the name or the path below the folder."""

    include: Sequence[str] = ()  # empty: everything that ends like an image
    exclude: Sequence[str] = ()

    def takes(self, path: str) -> bool:
        """``path`` is relative to the folder, with slashes."""
        if self.include:
            wanted = matches(path, self.include)
        else:
            wanted = os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - a million times
        return wanted and not self.leaves_out(path)

    def leaves_out(self, path: str) -> bool:
        """Whether a file or a whole folder is excluded."""
        return matches(path, self.exclude)


NO_FILTER = PathFilter()


def matches(path: str, patterns: Iterable[str]) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatch(path, pattern) or fnmatch(name, pattern) for pattern in patterns)


def scan(places: Sequence[Path], chosen: PathFilter = NO_FILTER) -> Iterator[ImageFile]:
    """Yield every image below the given files and folders, each name once.

    With several places a name starts with its folder, so that no two images share one.

    Raises:
        UsageError: a place does not exist.
    """
    for place in places:
        if not place.exists():
            raise UsageError(f"There is no file or folder {place}.")
    if len(places) == 1 and places[0].is_dir():
        return walk(places[0], "", chosen)
    return list_files(places, chosen)


def list_files(places: Iterable[Path], chosen: PathFilter = NO_FILTER) -> Iterator[ImageFile]:
    """:func:`scan` for a list, which may be read while it is written; what is not there is found later."""
    names: set[bytes] = set()
    for place in places:
        prefix = f"{place.as_posix().rstrip('/')}/"
        some = (
            walk(place, prefix, chosen) if place.is_dir() else [ImageFile(place, printable(place.as_posix()))]
        )
        for found in some:
            key = name_digest(found.name)
            if key not in names:
                names.add(key)
                yield found


def origin(places: Sequence[Path]) -> list[str]:
    """What the names of :func:`scan` hang on: two runs whose origins differ must not share an output."""
    if len(places) == 1 and places[0].is_dir():
        return [str(places[0].resolve())]
    return [f"{place.as_posix()} = {place.resolve()}" for place in places if place.is_dir()]


def locate(places: Sequence[Path], name: str) -> Path:
    """The file that goes by a name."""
    return places[0] / name if len(places) == 1 and places[0].is_dir() else Path(name)


def walk(root: Path, prefix: str, chosen: PathFilter, below: str = "") -> Iterator[ImageFile]:
    """Yield the images of one folder, ``root / below``; a folder that cannot be opened is yielded itself."""
    try:
        with os.scandir(root / below) as entries:
            here = sorted(
                (entry.name, entry.is_dir(follow_symlinks=False))
                for entry in entries
                if not entry.name.startswith(".") and not (entry.is_symlink() and entry.is_dir())
            )
    except OSError:
        yield ImageFile(root / below, printable(prefix + below))
        return
    for name, is_folder in here:
        path = below + name
        if is_folder:
            if not chosen.leaves_out(path):
                yield from walk(root, prefix, chosen, path + "/")
        elif chosen.takes(path):
            yield ImageFile(root / path, printable(prefix + path))


def printable(name: str) -> str:
    """A name that can be written as UTF-8: bytes that are none become ``\\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def name_digest(name: str) -> bytes:
    """A name in 12 bytes: with a million of them, two share one with a chance of one in 10^17."""
    return blake2b(name.encode(), digest_size=12).digest()


def count_aside(found: Iterable[ImageFile]) -> Callable[[], int]:
    """Count in a thread of its own; the function this gives says 0 until the count is known."""
    total = 0

    def count() -> None:
        nonlocal total
        total = sum(1 for _ in found)

    threading.Thread(target=count, daemon=True).start()
    return lambda: total
