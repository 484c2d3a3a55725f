"""Images decoded ahead of the model, by processes that do not load PyTorch.

Files travel in batches of a fixed size, counted along the complete scan. Which files of a batch are
still wanted changes nothing about its size or their places in it, so that a resumed run computes
every image in the same batch shape, and its scores are the same to the last bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from refiner_cli.data.crop import Crop
from refiner_cli.inference.decode_pool import DecodePool, DecodeResult, decode_one
from refiner_cli.inference.scan import FileVersion, ImageFile

FILES_PER_TASK = 8  # files that a process gets at once


@dataclass(frozen=True)
class QueuedImage:
    """An image of a batch that is to be decoded."""

    place: int  # in the batch
    image: ImageFile
    version: FileVersion  # of the file before it is read


@dataclass(frozen=True)
class Batch:
    """Files that go through the model together."""

    number: int
    size: int  # wanted or not
    wanted: tuple[QueuedImage, ...]

    @property
    def files(self) -> list[Path]:
        return [queued.image.file for queued in self.wanted]


def want_all(image: ImageFile, version: FileVersion) -> bool:  # noqa: ARG001 - of every image the same
    """Every image is wanted."""
    return True


def ignore_log(text: str) -> None:
    """Nobody listens."""


def make_batches(
    images: Iterable[ImageFile], size: int, wanted: Callable[[ImageFile, FileVersion], bool] = want_all
) -> Iterator[Batch]:
    """Yield the batches in which anything is wanted."""
    stream, number = iter(images), 0
    while members := list(islice(stream, size)):
        queued = [QueuedImage(i, image, FileVersion.of(image.file)) for i, image in enumerate(members)]
        chosen = tuple(one for one in queued if wanted(one.image, one.version))
        if chosen:
            yield Batch(number, len(members), chosen)
        number += 1


def decode_batches(
    batches: Iterable[Batch], crop: Crop, workers: int, log: Callable[[str], None] = ignore_log
) -> Iterator[tuple[Batch, list[DecodeResult]]]:
    """Decode the wanted files of every batch; ``workers`` processes work ahead, 0 stands for this one.

    A file on which a decoder crashes costs its process, and its result says so.
    """
    if workers == 0:
        for batch in batches:
            yield batch, [decode_one(file, crop) for file in batch.files]
        return
    pool = DecodePool(workers, crop, log)
    ahead: deque[tuple[Batch, list[Future[list[DecodeResult]]]]] = deque()
    try:
        for batch in batches:
            ahead.append((batch, [pool.submit(files) for files in split_tasks(batch.files)]))
            # Two tasks per process are on their way, and one batch is ready when the model is.
            if (len(ahead) - 1) * batch.size >= 2 * workers * FILES_PER_TASK and len(ahead) > 2:
                yield collect(*ahead.popleft())
        while ahead:
            yield collect(*ahead.popleft())
    finally:
        pool.close()


def split_tasks(files: Sequence[Path]) -> list[Sequence[Path]]:
    return [files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)]


def collect(batch: Batch, tasks: Sequence[Future[list[DecodeResult]]]) -> tuple[Batch, list[DecodeResult]]:
    return batch, [result for task in tasks for result in task.result()]
