"""A complete prediction run: from places to a finished output, resuming where an earlier run stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from refiner_cli.core.runtime.distributed import SINGLE_PROCESS, DistributedContext
from refiner_cli.data.safe_paths import path_inside
from refiner_cli.errors import RefinerError
from refiner_cli.inference.decoding import make_batches, want_all
from refiner_cli.inference.formats import ImageRow
from refiner_cli.inference.index import Index
from refiner_cli.inference.indexing import Wanted, predict_index
from refiner_cli.inference.output import Header, IsGone, Output, RowCount
from refiner_cli.inference.predict import predict_batches
from refiner_cli.inference.recogniser import Recogniser
from refiner_cli.inference.scan import FileVersion, ImageFile, is_folder, locate, name_digest, origin


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
    def places(self) -> Sequence[Path]:
        """What the names of rows are relative to."""

    def header(self) -> Header:
        """What decides the rows besides model, vocabulary and options."""

    def rows(self, wanted: Wanted, batch: int, ranks: DistributedContext) -> Iterator[ImageRow]:
        """The rows of this process's share of the wanted images, encoded ``batch`` at a time."""

    def gone(self) -> IsGone | None:
        """Whether an image that :meth:`rows` did not come across was deleted; None: not known."""


@dataclass(frozen=True)
class ImageSource:
    """Images that are read and encoded now."""

    recogniser: Recogniser
    images: Iterable[ImageFile]
    places: Sequence[Path]
    options: PredictOptions
    log: Callable[[str], None]

    def header(self) -> Header:
        return {"places": origin(self.places)}

    def rows(self, wanted: Wanted, batch: int, ranks: DistributedContext) -> Iterator[ImageRow]:
        batches = (group for group in make_batches(self.images, batch, wanted)
                   if group.number % ranks.world_size == ranks.rank)  # fmt: skip
        return predict_batches(self.recogniser, batches, top_k=self.options.top_k,
                               workers=self.options.workers, heatmaps=self.options.heatmaps,
                               log=self.log)  # fmt: skip

    def gone(self) -> IsGone | None:
        return gone_test(self.places)


def lists_all(name: str) -> bool:  # noqa: ARG001 - the answer is the same for all names
    """Of an index: an image that it does not list is gone."""
    return True


@dataclass(frozen=True)
class IndexSource:
    """Images whose vectors an index holds."""

    recogniser: Recogniser
    index: Index
    options: PredictOptions

    @property
    def places(self) -> Sequence[Path]:
        return [Path(place) for place in self.index.info.places]

    def header(self) -> Header:
        return {"places": [*origin(self.places), "index"]}

    def rows(self, wanted: Wanted, batch: int, ranks: DistributedContext) -> Iterator[ImageRow]:
        return predict_index(self.recogniser, self.index, wanted, self.options.top_k, batch, ranks)

    def gone(self) -> IsGone | None:
        return lists_all


def predict_to_output(
    output: Output,
    source: RowSource,
    recogniser: Recogniser,
    options: PredictOptions,
    listener: PredictListener,
    ranks: DistributedContext = SINGLE_PROCESS,
) -> RowCount:
    """Make sure that every image of the source has one row in the output, and return how many there are.

    Raises:
        UsageError: the rows in the output were made with another model, vocabulary, or the like.
        RefinerError: an image cannot be read and the run is to stop then; the output is in use, or was
            changed by others.
    """
    header: Header = {**recogniser.fingerprint(), "top_k": options.top_k, **source.header(),
                      "batch": options.batch}  # fmt: skip
    places = source.places
    folder = places[0] if len(places) == 1 and is_folder(places[0]) else None
    with output.locked() if ranks.is_main else nullcontext():
        if ranks.is_main:
            header = output.prepare(header, overwrite=options.overwrite, folder=folder)
        ranks.barrier()
        header = output.accept(header)
        earlier = output.earlier()
        ranks.barrier()  # nobody writes while another still reads
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
            for row in source.rows(wanted, header["batch"], ranks):
                if name_digest(row.path) in maps_only:
                    listener.row_kept()
                else:
                    yield row

        with output.writing() as journal:
            write_rows(new_rows(), journal, listener, stop_at_error=options.stop_at_error)
        ranks.barrier()
        count = RowCount(0, 0)
        if ranks.is_main:
            count = output.finish(header, found, earlier, source.gone())
        ranks.barrier()
    return count


def predict_to_writer(
    writer: RowWriter, source: RowSource, options: PredictOptions, listener: PredictListener
) -> RowCount:
    """Write the rows somewhere as they come. Raises RefinerError as :func:`predict_to_output`."""
    rows = source.rows(want_all, options.batch, SINGLE_PROCESS)
    return write_rows(rows, writer, listener, stop_at_error=options.stop_at_error)


def write_rows(
    rows: Iterable[ImageRow], writer: RowWriter, listener: PredictListener, *, stop_at_error: bool
) -> RowCount:
    """Write rows as they come. Raises RefinerError at the first unreadable image if requested."""
    images = errors = 0
    for row in rows:
        if row.prediction is None:
            if stop_at_error:
                raise RefinerError(row.error, hint="With --on-error skip the run would continue.")
            errors += 1
        writer.write(row)
        images += 1
        listener.row_written(row)
    return RowCount(images, errors)


def gone_test(places: Sequence[Path]) -> IsGone | None:
    """Whether the image of a row was deleted; None for lists of files, which need not name all images."""
    if not places or not all(map(is_folder, places)):
        return None

    def is_gone(name: str) -> bool:
        if name.endswith("/"):  # a folder that could not be opened, and now can
            return True
        try:
            locate(places, name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except (OSError, ValueError):  # out of reach, not gone
            return False
        return False

    return is_gone


def lacks_map(folder: Path, name: str) -> bool:
    """Whether the attention map of an image is missing, and can be there."""
    try:
        path_inside(folder, name, ".jpg").lstat()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):  # a name that no file can have
        return False
    return False
