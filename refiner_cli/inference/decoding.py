"""Images read and decoded ahead of the model, by processes that do not load PyTorch.

Images travel one by one and are put into batches of a fixed size, counted along the complete stream.
Which images of a batch are still wanted changes nothing about its size or their places in it, so that a
resumed run computes every image in the same batch shape, and its scores are the same to the last bit.

Memory is bounded whatever the images are: bytes that wait for a decoder by :data:`BYTES_AHEAD`, images
that wait for the model by their number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from refiner_cli.data.crop import Crop
from refiner_cli.data.image_file import UnreadableError
from refiner_cli.files import reason_of
from refiner_cli.inference.decode_pool import DecodePool, DecodeResult, decode_one
from refiner_cli.inference.scan import FileVersion, ImageFile
from refiner_cli.inference.sources.content import Content, DecodeTask, Failed, Loaded

FILES_PER_TASK = 8  # images that a process gets at once
FETCH_THREADS = 16  # images that are fetched from other machines at once
BYTES_AHEAD = 256 << 20  # of images in memory that wait for a decoder

Wanted: TypeAlias = Callable[[ImageFile, FileVersion], bool]


@dataclass(frozen=True)
class QueuedImage:
    """An image on its way to the model."""

    place: int  # in its batch
    image: ImageFile
    version: FileVersion  # before it is read
    wanted: bool = True

    def released(self) -> QueuedImage:
        """Without its bytes."""
        return replace(self, image=replace(self.image, content=_RELEASED)) if self.held else self

    @property
    def held(self) -> int:
        """Bytes that it holds."""
        content = self.image.content
        return len(content.data) if isinstance(content, Loaded) else 0


_RELEASED = Failed("its bytes were given back")


@dataclass(frozen=True)
class Batch:
    """Images that go through the model together."""

    number: int
    size: int  # wanted or not
    wanted: tuple[QueuedImage, ...]


def want_all(image: ImageFile, version: FileVersion) -> bool:  # noqa: ARG001 - of every image the same
    """Every image is wanted."""
    return True


def ignore_log(text: str) -> None:
    """Nobody listens."""


def decode_batches(
    images: Iterable[ImageFile],
    size: int,
    crop: Crop,
    workers: int,
    log: Callable[[str], None] = ignore_log,
    wanted: Wanted = want_all,
) -> Iterator[tuple[Batch, list[DecodeResult]]]:
    """Yield the batches in which anything is wanted, with a result for each wanted image.

    Args:
        size: images of a batch.
        workers: processes that decode ahead; 0: this one does, when a batch is asked for. An image on which
            a decoder crashes costs its process, and its result says so.
        wanted: asked about every image, in order.
    """
    queue = (QueuedImage(i % size, image, version, wanted(image, version))
             for i, (image, version) in enumerate((one, one.seen_as()) for one in images))  # fmt: skip
    decoded = decode_stream(fetch_stream(queue, 2 * size), size, crop, workers, log)
    number = 0
    try:
        while members := list(islice(decoded, size)):
            chosen = [(queued, result) for queued, result in members if result is not None]
            if chosen:
                batch = Batch(number, len(members), tuple(queued for queued, _ in chosen))
                yield batch, [result for _, result in chosen]
            number += 1
    finally:
        decoded.close()


Decoded: TypeAlias = tuple[QueuedImage, DecodeResult | None]  # None: not wanted


def decode_stream(
    queue: Iterable[QueuedImage], size: int, crop: Crop, workers: int, log: Callable[[str], None]
) -> Generator[Decoded]:
    """Decode the wanted images of a stream, in order."""
    if workers == 0:
        for queued in queue:
            yield queued.released(), decode_one(queued.image.task, crop) if queued.wanted else None
        return
    pool = DecodePool(workers, crop, log)
    # Two tasks per process are on their way, and one batch is ready when the model is.
    enough = max(2 * workers * FILES_PER_TASK, 2 * size)
    ahead: deque[DecodingTask] = deque()
    try:
        for group in split_tasks(queue):
            tasks: list[Path | DecodeTask] = [queued.image.task for queued in group if queued.wanted]
            held = sum(queued.held for queued in group)
            released = [queued.released() for queued in group]
            ahead.append(DecodingTask(released, held, pool.submit(tasks) if tasks else None))
            while sum(len(task.group) for task in ahead) > enough or bytes_held(ahead) > BYTES_AHEAD:
                yield from ahead.popleft().results()
        while ahead:
            yield from ahead.popleft().results()
    finally:
        pool.close()


@dataclass(frozen=True)
class DecodingTask:
    """Consecutive images, which one process decodes."""

    group: Sequence[QueuedImage]
    held: int  # bytes
    future: Future[list[DecodeResult]] | None  # of the wanted ones

    def results(self) -> Iterator[Decoded]:
        found = iter(self.future.result() if self.future else ())
        return ((queued, next(found) if queued.wanted else None) for queued in self.group)


def bytes_held(ahead: Iterable[DecodingTask]) -> int:
    return sum(task.held for task in ahead if task.future and not task.future.done())


def split_tasks(queue: Iterable[QueuedImage]) -> Iterator[list[QueuedImage]]:
    stream = iter(queue)
    while group := list(islice(stream, FILES_PER_TASK)):
        yield group


def fetch_stream(queue: Iterable[QueuedImage], enough: int) -> Iterator[QueuedImage]:
    """Fetch what lies on other machines, ``enough`` images ahead and many at a time; the order stays."""
    ahead: deque[tuple[QueuedImage, Future[Content] | None]] = deque()
    threads: ThreadPoolExecutor | None = None
    try:
        for queued in queue:
            content = queued.image.content
            if not (queued.wanted and content is not None and content.remote):
                if not ahead:
                    yield queued
                    continue
                ahead.append((queued, None))
            else:
                threads = threads or ThreadPoolExecutor(FETCH_THREADS, "fetch")
                ahead.append((queued, threads.submit(fetch_content, content)))
            while len(ahead) > enough or waiting_bytes(ahead) > BYTES_AHEAD:
                yield with_content(*ahead.popleft())
        while ahead:
            yield with_content(*ahead.popleft())
    finally:
        if threads:
            threads.shutdown(wait=False, cancel_futures=True)


def fetch_content(content: Content) -> Content:
    """The bytes of an image in memory, or why there are none."""
    try:
        return Loaded(content.read())
    except UnreadableError as reason:
        return Failed(str(reason))
    except (OSError, ValueError, MemoryError) as error:
        return Failed(reason_of(error))


def waiting_bytes(ahead: Iterable[tuple[QueuedImage, Future[Content] | None]]) -> int:
    done = (future.result() for _, future in ahead if future and future.done())
    return sum(len(content.data) for content in done if isinstance(content, Loaded))


def with_content(queued: QueuedImage, fetched: Future[Content] | None) -> QueuedImage:
    if fetched is None:
        return queued
    return replace(queued, image=replace(queued.image, content=fetched.result()))
