"""A complete prediction run: from places to a finished output, resuming where an earlier run stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from refiner_cli.data.safe_paths import path_inside
from refiner_cli.errors import RefinerError
from refiner_cli.inference.decoding import Wanted, want_all
from refiner_cli.inference.formats import ImageRow
from refiner_cli.inference.index import Index
from refiner_cli.inference.indexing import predict_index
from refiner_cli.inference.output import Header, IsGone, Output, RowCount
from refiner_cli.inference.predict import predict_files
from refiner_cli.inference.recogniser import Recogniser
from refiner_cli.inference.scan import FileVersion, ImageFile, is_folder, name_digest
from refiner_cli.inference.sources.noted import NotedPlaces
from refiner_cli.inference.sources.places import Places, find_again
from refiner_cli.inference.sources.vanished import lists_all


@dataclass(frozen=True)
class PredictOptions:
    """How to predict."""

    top_k: int = 5
    batch: int = 32  # images encoded at once
    workers: int = 0  # processes that decode; 0: this one does
    stop_at_error: bool = False
    keep_errors: bool = False  # leave rows with an error as they are
    overwrite: bool = False  # discard existing rows
    heatmaps: Path | None = None  # a folder for attention maps


class PredictListener(Protocol):
    """Receives what happens during a run."""

    def row_written(self, row: ImageRow) -> None:
        """An image got its row."""

    def row_kept(self) -> None:
        """An image has a row of an earlier run."""

    def note(self, text: str) -> None:
        """One sentence worth showing."""


class RowWriter(Protocol):
    def write(self, row: ImageRow) -> None: ...


class RowSource(Protocol):
    """Where rows come from: images that are read now, or an index."""

    @property
    def folder(self) -> Path | None:
        """The folder that the names of rows are relative to, if that is one."""

    def header(self) -> Header:
        """What decides the rows besides model, vocabulary and options."""

    def rows(self, wanted: Wanted, batch: int) -> Iterator[ImageRow]:
        """The rows of the wanted images, encoded ``batch`` at a time."""

    def gone(self) -> IsGone | None:
        """Whether an image that :meth:`rows` did not come across was deleted; None: not known."""

    def locate(self, names: Sequence[str]) -> Iterator[ImageFile]:
        """The images of some rows, by their names and in that order."""


@dataclass(frozen=True)
class ImageSource:
    """Images that are read and encoded now."""

    recogniser: Recogniser
    images: Iterable[ImageFile]
    places: Places
    options: PredictOptions
    log: Callable[[str], None]

    def header(self) -> Header:
        return self.places.header()

    @property
    def folder(self) -> Path | None:
        return self.places.folder

    def rows(self, wanted: Wanted, batch: int) -> Iterator[ImageRow]:
        return predict_files(self.recogniser, self.images, top_k=self.options.top_k, batch=batch,
                             workers=self.options.workers, wanted=wanted, heatmaps=self.options.heatmaps,
                             log=self.log)  # fmt: skip

    def gone(self) -> IsGone | None:
        return self.places.gone()

    def locate(self, names: Sequence[str]) -> Iterator[ImageFile]:
        return self.places.locate(names)


@dataclass(frozen=True)
class IndexSource:
    """Images whose vectors an index holds."""

    recogniser: Recogniser
    index: Index
    options: PredictOptions

    def header(self) -> Header:
        return {"places": [*self.index.info.places, "index"]}

    @property
    def folder(self) -> Path | None:
        place = NotedPlaces(self.index.info.places).single
        return Path(place) if place and is_folder(Path(place)) else None

    def rows(self, wanted: Wanted, batch: int) -> Iterator[ImageRow]:
        return predict_index(self.recogniser, self.index, wanted, self.options.top_k, batch)

    def gone(self) -> IsGone | None:
        return lists_all

    def locate(self, names: Sequence[str]) -> Iterator[ImageFile]:
        return find_again(self.index.info.places).locate(names)


def predict_to_output(
    output: Output,
    source: RowSource,
    recogniser: Recogniser,
    options: PredictOptions,
    listener: PredictListener,
) -> RowCount:
    """Make sure that every image of the source has one row in the output, and return how many there are.

    Raises:
        UsageError: the rows in the output were made with another model, vocabulary, or the like.
        RefinerError: an image cannot be read and the run is to stop then; the output is in use, or was
            changed by others.
    """
    header: Header = {**recogniser.fingerprint(), "verdict_rule": str(recogniser.rule or "none"),
                      "top_k": options.top_k, **source.header(),
                      "batch": options.batch}  # fmt: skip
    with output.locked():
        header = output.prepare(header, overwrite=options.overwrite, folder=source.folder)
        earlier = output.earlier()
        found: set[bytes] = set()
        maps_only: set[bytes] = set()  # images whose row stays, but whose attention map is missing

        def wanted(image: ImageFile, version: FileVersion) -> bool:
            key = name_digest(image.name)
            found.add(key)
            if not earlier.cover(image.name, version, keep_errors=options.keep_errors):
                return True
            if options.heatmaps and key not in earlier.errors and lacks_map(options.heatmaps, image.name):
                maps_only.add(key)
                return True
            listener.row_kept()
            return False

        def new_rows() -> Iterator[ImageRow]:
            for row in source.rows(wanted, header["batch"]):
                if name_digest(row.path) in maps_only:
                    listener.row_kept()
                else:
                    yield row

        with output.writing() as journal:
            write_rows(new_rows(), journal, listener, stop_at_error=options.stop_at_error)
        return output.finish(header, found, earlier, source.gone())


def predict_to_writer(
    writer: RowWriter, source: RowSource, options: PredictOptions, listener: PredictListener
) -> RowCount:
    """Write the rows somewhere as they come. Raises RefinerError as :func:`predict_to_output`."""
    rows = source.rows(want_all, options.batch)
    return write_rows(rows, writer, listener, stop_at_error=options.stop_at_error)


def write_rows(
    rows: Iterable[ImageRow], writer: RowWriter, listener: PredictListener, *, stop_at_error: bool
) -> RowCount:
    """Write rows as they come. Raises RefinerError at the first unreadable image if requested."""
    count = RowCounter(listener, stop_at_error=stop_at_error)
    for row in count.passed_on(rows):
        writer.write(row)
    return count.total


class RowCounter:
    """Counts rows while they are written."""

    def __init__(self, listener: PredictListener, *, stop_at_error: bool) -> None:
        self.listener, self.stop_at_error = listener, stop_at_error
        self.total = RowCount(0, 0)

    def passed_on(self, rows: Iterable[ImageRow]) -> Iterator[ImageRow]:
        """The rows; each counts once the next is asked for. Raises RefinerError as :func:`write_rows`."""
        for row in rows:
            is_error = row.prediction is None
            if is_error and self.stop_at_error:
                raise RefinerError(row.error, hint="With --on-error skip the run would continue.")
            yield row
            self.total = RowCount(self.total.images + 1, self.total.errors + is_error)
            self.listener.row_written(row)


def lacks_map(folder: Path, name: str) -> bool:
    """Whether the attention map of an image is missing, and can be there."""
    try:
        path_inside(folder, name, ".jpg").lstat()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):  # a name that no file can have
        return False
    return False
