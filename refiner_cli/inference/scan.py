"""Find the images of files, folders and lists: lazily, in a fixed order, each under a name of its own.

Hidden files and folders are left out, and so are folders of other programs (thumbnails of a NAS,
``__MACOSX``) and those of images that refiner made. Links to files are followed; links to folders are
not, as they lead to the same images twice or in a circle. A place given by hand is always followed.
What cannot be looked at is one entry of its own and costs no other.
"""

from __future__ import annotations

import codecs
import datetime as dt
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from hashlib import blake2b
from pathlib import Path
from typing import Any

from refiner_cli.data.box import Box
from refiner_cli.data.image_file import IMAGE_SUFFIXES
from refiner_cli.data.safe_paths import OUTPUT_MARKER, is_foreign
from refiner_cli.errors import InputError
from refiner_cli.inference.sources.content import Content, DecodeTask

# A backslash that starts what could be read as an escape; names hold the escape of the backslash instead.
_LIKE_ESCAPE = re.compile(r"\\(?=x[0-9a-f]{2}|u[0-9a-f]{4})")


@dataclass(frozen=True)
class FileVersion:
    """What shows that a file changed: its size in bytes and when it was modified; None: unknown."""

    size: int | None = None
    modified: str | None = None  # UTC, ISO 8601 with microseconds

    @classmethod
    def of(cls, file: Path) -> FileVersion:
        """Of the file as it is now; unknown where it cannot be looked at."""
        try:
            status = file.stat()
            modified = dt.datetime.fromtimestamp(status.st_mtime_ns // 1000 / 1e6, dt.UTC)
        except (OSError, ValueError, OverflowError):
            return cls()
        return cls(status.st_size, modified.isoformat(timespec="microseconds").replace("+00:00", "Z"))


UNKNOWN_VERSION = FileVersion()


@dataclass(frozen=True)
class ImageFile:
    """One image and the name it goes by: its path relative to the given place, with slashes.

    Attributes:
        file: where it lies; of a member of an archive, the archive's path and the member's name.
        content: how its bytes are read; None: as the file that it is.
        version: None: that of the file.
        box: the part that is recognised; None: all of it.
        inputs: what its source says about it: the other columns of a table, the box of a detector.
        shown: what a message calls it; "": the path of ``file``.
    """

    file: Path
    name: str
    content: Content | None = None
    version: FileVersion | None = None
    box: Box | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    shown: str = ""

    @property
    def where(self) -> str:
        """What a message calls it."""
        return self.shown or row_name(str(self.file))

    @property
    def task(self) -> Path | DecodeTask:
        """What a decoding process gets."""
        if self.content is None and self.box is None:
            return self.file
        return DecodeTask(self.content or self.file, self.box)

    def seen_as(self) -> FileVersion:
        """Its size and when it was modified, as they are now."""
        return FileVersion.of(self.file) if self.version is None else self.version


@dataclass(frozen=True)
class PathFilter:
    """Which files of a folder count; patterns as in a shell, on the name or the path below the folder."""

    include: Sequence[str] = ()  # empty: everything that ends like an image
    exclude: Sequence[str] = ()
    outputs: Sequence[Path] = ()  # files and folders that this run writes; never an input

    def takes(self, path: str) -> bool:
        """``path`` is relative to the folder, with slashes."""
        if self.include:
            wanted = matches(path, self.include)
        else:
            wanted = os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - a million times
        return wanted and not self.leaves_out(path)

    def leaves_out(self, path: str) -> bool:
        """Whether a file or a complete folder is excluded."""
        return matches(path, self.exclude)

    def outputs_below(self, root: Path) -> set[str]:
        """The outputs that lie below a folder, relative to it, with slashes."""
        try:
            base = root.resolve()
            resolved = [file.resolve() for file in self.outputs]
        except (OSError, RuntimeError):
            return set()
        return {file.relative_to(base).as_posix() for file in resolved if file.is_relative_to(base)}


NO_FILTER = PathFilter()


def matches(path: str, patterns: Iterable[str]) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatch(path, pattern) or fnmatch(name, pattern) for pattern in patterns)


def is_folder(place: Path) -> bool:
    """Whether a path is a folder; False for whatever cannot be looked at."""
    return os.path.isdir(place)  # noqa: PTH112 - unlike Path.is_dir, it raises nothing


def scan(places: Sequence[Path], chosen: PathFilter = NO_FILTER) -> Iterator[ImageFile]:
    """Yield every image below the given files and folders, each name once.

    With several places a name starts with its folder, so that no two images share one.

    Raises:
        InputError: a place does not exist.
    """
    for place in places:
        if not os.path.exists(place):  # noqa: PTH110 - unlike Path.exists, it raises nothing
            raise InputError(f"There is no file or folder {row_name(str(place))}.")
    if len(places) == 1 and is_folder(places[0]):
        return walk(places[0], "", chosen)
    return list_files(places, chosen)


def list_files(places: Iterable[Path | str], chosen: PathFilter = NO_FILTER) -> Iterator[ImageFile]:
    """:func:`scan` for a list, which may be read while it is written; a missing file is yielded as well."""
    names: set[bytes] = set()
    for place in map(Path, places):
        if is_folder(place):
            images = walk(place, f"{place.as_posix().rstrip('/')}/", chosen)
        else:
            images = iter([ImageFile(place, row_name(place.as_posix()))])
        for image in images:
            key = name_digest(image.name)
            if key not in names:
                names.add(key)
                yield image


def read_list(lines: Iterable[bytes], *, null: bool = False) -> Iterator[str]:
    """The paths of a list with one per line, as bytes: a path need not be text.

    Empty lines and a byte order mark do not count. Lines may end as on Windows, too.

    Args:
        null: whether the list was separated by NUL characters, so that a path may hold the ends of lines.
    """
    for number, content in enumerate(lines):
        line = content
        if not null:
            line = line.removesuffix(b"\n")
            if number == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.endswith(b"\r") and not os.path.lexists(line):
                line = line[:-1]
        if line:
            yield os.fsdecode(line)


def walk(root: Path, prefix: str, chosen: PathFilter) -> Iterator[ImageFile]:
    """Yield the images below a folder; a folder that cannot be opened is yielded itself, with a slash."""
    outputs = chosen.outputs_below(root)
    stack = [iter([("", True)])]  # one iterator per level: folders may be deeper than Python's own stack
    while stack:
        path, has_entries = next(stack[-1], (None, False))
        if path is None:
            stack.pop()
        elif path in outputs or (path and has_entries and chosen.leaves_out(path)):
            continue
        elif has_entries:
            below = f"{path}/" if path else ""
            try:
                entries = list_folder(f"{root}/{path}")
            except OSError:
                yield ImageFile(root / path, row_name(prefix + below))
                continue
            if path and any(name == OUTPUT_MARKER for name, _ in entries):
                continue
            own = ((name, deeper) for name, deeper in entries if not is_foreign(name, folder=deeper))
            stack.append(iter([(below + name, deeper) for name, deeper in own]))
        elif chosen.takes(path):
            yield ImageFile(root / path, row_name(prefix + path))


def list_folder(folder: str) -> list[tuple[str, bool]]:
    """Sorted names of a folder's entries, and which of them are folders; links to folders are left out."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                deeper = entry.is_dir(follow_symlinks=False)
                if entry.is_symlink() and entry.is_dir():
                    continue
            except OSError:  # a link to itself, or into a folder that may not be entered
                deeper = False
            found.append((entry.name, deeper))
    return sorted(found)


def row_name(path: str) -> str:
    r"""A path as UTF-8 text, different for any two paths: bytes that are not UTF-8 become ``\xNN``."""
    escaped = _LIKE_ESCAPE.sub(r"\\x5c", path)
    return os.fsencode(escaped).decode("utf-8", "backslashreplace")


def row_path(name: str) -> str:
    """The inverse of :func:`row_name`."""
    if "\\x" not in name:
        return name
    parts = re.split(r"\\x([0-9a-f]{2})", name)  # text and digits in turn
    return os.fsdecode(
        b"".join(bytes.fromhex(part) if i % 2 else part.encode() for i, part in enumerate(parts))
    )


def name_digest(name: str) -> bytes:
    """A name in 12 bytes: with a million of them, two share one with a chance of one in 10^17."""
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def count_in_background(images: Iterable[ImageFile]) -> Callable[[], int]:
    """Count in another thread; the function this returns gives 0 until the count is known."""
    total = 0

    def count() -> None:
        nonlocal total
        total = sum(1 for _ in images)

    threading.Thread(target=count, daemon=True).start()
    return lambda: total
