"""Find the images of files, folders and lists: lazily, in a fixed order, each under a name of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from refiner_cli.errors import UsageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif"})


@dataclass(frozen=True)
class Found:
    """One image file and the name it goes by: its path relative to the given folder, with slashes."""

    file: Path
    name: str


def scan(places: Sequence[Path]) -> Iterator[Found]:
    """Yield every image below the given files and folders; hidden files and folders are left out.

    With several folders a name starts with its folder, so that no two images share one.

    Raises:
        UsageError: a place does not exist.
    """
    for place in places:
        if not place.exists():
            raise UsageError(f"There is no file or folder {place}.")
    for place in places:
        if place.is_dir():
            prefix = "" if len(places) == 1 else f"{place.as_posix().rstrip('/')}/"
            yield from walk(place, place, prefix)
        else:
            yield Found(place, place.as_posix())


def walk(folder: Path, root: Path, prefix: str) -> Iterator[Found]:
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from walk(entry, root, prefix)
        elif entry.suffix.lower() in SUFFIXES:
            yield Found(entry, prefix + entry.relative_to(root).as_posix())
