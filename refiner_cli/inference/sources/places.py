"""The places that a command is given, each as the source that it looks like; their images under one roof.

A folder, archive or table that is the only place gives names relative to it. With several places a name
starts with its place, so that no two images share one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from refiner_cli.errors import InputError, RefinerError, UsageError
from refiner_cli.inference.scan import (
    NO_FILTER,
    ImageFile,
    PathFilter,
    count_in_background,
    is_folder,
    row_name,
    row_path,
)
from refiner_cli.inference.sources.boxes import Boxes, cropped_name
from refiner_cli.inference.sources.braces import expand_braces
from refiner_cli.inference.sources.bucket import (
    BucketFile,
    BucketFolder,
    BucketImage,
    expand_pattern,
    is_bucket_folder,
)
from refiner_cli.inference.sources.content import Failed, Loaded
from refiner_cli.inference.sources.file_list import FileList
from refiner_cli.inference.sources.folder import FileSource, FolderSource
from refiner_cli.inference.sources.image_table import ImageTable, image_column
from refiner_cli.inference.sources.noted import NotedPlaces, note_places
from refiner_cli.inference.sources.source import DAMAGES, PlaceSource, is_address, with_unique_names
from refiner_cli.inference.sources.store import LocalFile, Store
from refiner_cli.inference.sources.table import LIST_SUFFIXES, TableSource, image_at
from refiner_cli.inference.sources.tar import TAR_SUFFIXES, TarSource
from refiner_cli.inference.sources.vanished import gone_test, lists_all
from refiner_cli.inference.sources.web import WebFile, WebImage, is_web
from refiner_cli.inference.sources.zip import ZipSource

STDIN_PLACE = "-"


@dataclass
class Places:
    """Every image of some sources."""

    sources: Sequence[PlaceSource]
    several: bool = False  # names begin with their place even if there is one source
    boxes: Boxes | None = None  # an image a box, instead of the complete images
    # What the names of images begin with whose folder or file could not be opened.
    unopened: set[str] = field(default_factory=set)

    @property
    def single(self) -> PlaceSource | None:
        """The one source that names are relative to, if there is one."""
        only = self.sources[0] if len(self.sources) == 1 else None
        return only if only and only.is_container and not self.several else None

    def images(self) -> Iterator[ImageFile]:
        """Every image, in a fixed order, each under a name of its own."""
        complete = self.complete_images()
        return self.boxes.crops(complete) if self.boxes else complete

    def complete_images(self) -> Iterator[ImageFile]:
        """Every image as it is, whatever boxes there are."""
        if self.folder:  # no two of its files have one name, and there may be a million
            yield from self.named(self.sources[0])
            return
        shared: set[bytes] = set()
        for source in self.sources:
            taken = set() if source.numbers_doubles else shared
            yield from with_unique_names(self.named(source), number=source.numbers_doubles, taken=taken)

    def listed(self, source: PlaceSource) -> Iterator[ImageFile]:
        """The images of one source, or their crops; the names need not be unique."""
        named = self.named(source)
        return self.boxes.crops(named) if self.boxes else named

    def named(self, source: PlaceSource) -> Iterator[ImageFile]:
        """The images of one source under their names here, which need not be unique."""
        own, prefix = row_name(source.given.rstrip("/")), self.prefix(source)
        for image in source.images():
            name = f"{prefix}{image.name}" if image.name else own
            if image.content is None and (not image.name or image.name.endswith("/")):
                self.unopened.add(f"{prefix}{image.name}")
            yield image if name == image.name else replace(image, name=name)

    def prefix(self, source: PlaceSource) -> str:
        """What the names of a source's images begin with here."""
        return f"{row_name(source.given.rstrip('/'))}/" if source.is_container and not self.single else ""

    def out_of_reach(self, name: str) -> bool:
        """Whether an image may be there although the last pass did not come across it.

        Its folder could not be opened, or its archive, table or bucket not read to the end.
        """
        cut_short = [self.prefix(source) for source in self.sources
                     if source.is_container and source.folder is None and not source.complete]  # fmt: skip
        return name.startswith((*cut_short, *self.unopened))

    def origin(self) -> list[str]:
        """What the names are relative to: see :mod:`refiner_cli.inference.sources.noted`."""
        return self.note([source for source in self.sources if source.is_container])

    def note(self, sources: Sequence[PlaceSource]) -> list[str]:
        given = [(source.given, source.place) for source in sources]
        return note_places(given, single=self.single is not None)

    def noted(self) -> NotedPlaces:
        """Where all its images lie."""
        return NotedPlaces(self.note(self.sources))

    def header(self) -> dict[str, Any]:
        """What decides about the images: two runs in which it differs share no output."""
        return {"places": self.origin(), "boxes": self.boxes.fingerprint if self.boxes else None}

    def files_fingerprint(self) -> str | None:
        """Of the files that are given one by one, which :meth:`header` does not name; None: there are none.

        A list is read to its end.
        """
        given = [one for source in self.sources if not source.is_container and (one := source.identity)]
        return hashlib.sha256("\0".join(given).encode()).hexdigest()[:16] if given else None

    @property
    def carries_inputs(self) -> bool:
        """Whether a source says more about its images than where they are."""
        return self.boxes is not None or any(source.carries_inputs for source in self.sources)

    @property
    def folder(self) -> Path | None:
        """The local folder that all names are relative to."""
        return self.single.folder if self.single else None

    def gone(self) -> Callable[[str], bool] | None:
        """Whether an image that the last pass did not come across was deleted; None: not known."""
        if all(source.folder for source in self.sources):
            return gone_test(self.noted())
        return lists_all if all(source.lists_all for source in self.sources) else None

    def count(self) -> Callable[[], int]:
        """How many images there are, as soon as that is known cheaply; 0 until then."""
        if self.boxes or any(source.folder is None and source.is_container for source in self.sources):
            return lambda: 0
        return count_in_background(self.images())

    def locate(self, names: Sequence[str]) -> Iterator[ImageFile]:
        """The images that go by some names, in that order; without content where it cannot be read again."""
        images = self.images()
        if all(source.folder or not source.is_container for source in self.sources):
            # Their places say where they lie, without another pass over them.
            noted = self.noted()
            complete = dict.fromkeys(map(cropped_name, names)) if self.boxes else names
            images = (image_at(noted.locate(name), name) for name in complete)
            if not self.boxes:
                yield from images
                return
            images = self.boxes.crops(images)
        wanted = set(names)
        again = Failed("it can only be read together with its archive")
        found = {image.name: replace(image, content=again) if isinstance(image.content, Loaded) else image
                 for image in images if image.name in wanted}  # fmt: skip
        lost = Failed("its source does not have it any more")
        yield from (found.get(name) or ImageFile(Path(name), name, lost) for name in names)


def find_places(
    given: Sequence[str],
    chosen: PathFilter = NO_FILTER,
    stdin: IO[bytes] | None = None,
    *,
    null: bool = False,
) -> Places:
    """The sources that some places look like.

    Args:
        given: paths, addresses, patterns with braces, or "-" alone.
        stdin: where "-" reads its list.
        null: whether that list is separated by NUL characters instead of lines.

    Raises:
        InputError: a place does not exist, or a pattern names nothing.
        UsageError: stdin is named beside other places, or is closed.
        FetchError: a remote place cannot be looked at.
        EnvironmentLacksError: a package for its scheme is missing.
    """
    if STDIN_PLACE in given:
        if len(given) > 1:
            raise UsageError("A list on stdin is read alone.", hint="Give - as the only PATH.")
        if stdin is None:
            raise UsageError("The list of images is read from stdin, which is closed.")
        return Places([FileList(stdin, chosen, null=null)])
    places: list[str] = []
    for text in given:
        places += [text] if not is_address(text) and path_exists(text) else expand_all(text)
    return Places([find_source(place, chosen) for place in dict.fromkeys(places)])


def find_again(kept: Sequence[str]) -> Places:
    """The sources of an index, as it notes them; without those that are gone or out of reach."""
    noted, sources = NotedPlaces(kept), list[PlaceSource]()
    for given, place in noted.by_given.items():
        with suppress(RefinerError):
            found = find_places([place]).sources
            if not is_address(place):  # an address is always given as it is
                called = [given] if len(found) == 1 else dict.fromkeys(expand_braces(given))
                for source, name in zip(found, called, strict=True):
                    source.given = row_path(name)
            sources += found
    return Places(sources, several=noted.single is None)


def expand_all(text: str) -> list[str]:
    """The places that a text with braces or ``*`` means."""
    expanded = expand_braces(text)
    remote = [one for one in expanded if is_address(one) and "*" in one and not is_web(one)]
    return [place for one in expanded for place in (expand_pattern(one) if one in remote else [one])]


def find_source(place: str, chosen: PathFilter) -> PlaceSource:
    """The source that one place looks like."""
    if is_web(place):
        path = urlsplit(place).path.lower()
        return find_file(place, path, WebFile(place), chosen) or WebImage(place)
    if is_address(place):
        found = find_file(place, place.lower(), BucketFile(place), chosen)
        if found:
            return found
        return (
            BucketFolder(place, chosen)
            if place.endswith("/") or is_bucket_folder(place)
            else BucketImage(place)
        )
    place = Path(place).as_posix()
    if is_folder(Path(place)):
        return FolderSource(place, chosen)
    if not path_exists(place):
        raise InputError(f"There is no file or folder {row_name(place)}.")
    return find_file(place, place.lower(), LocalFile(Path(place)), chosen) or FileSource(place)


def path_exists(place: str) -> bool:
    try:
        return Path(place).exists()
    except (OSError, ValueError):
        return False


def find_file(place: str, name: str, store: Store, chosen: PathFilter) -> PlaceSource | None:
    """The archive or table that a file is, by its name; None for any other file."""
    if name.endswith(TAR_SUFFIXES):
        return TarSource(place, store, chosen)
    if name.endswith(".zip"):
        return ZipSource(place, store, chosen)
    if name.endswith(".parquet") and holds_images(store):
        return ImageTable(place, store)
    return TableSource(place, store) if name.endswith(LIST_SUFFIXES) else None


def holds_images(store: Store) -> bool:
    """Whether a Parquet file has a column of images; False for one that cannot be read."""
    import pyarrow.parquet as pq

    try:
        with store.open_seekable() as stream:
            return image_column(pq.read_schema(stream)) is not None
    except DAMAGES:
        return False
