"""Images decoded ahead of the model, by processes that do not load PyTorch.

Files travel in groups of a fixed size, counted along the whole scan. Which files of a group are
still wanted changes nothing about its size or their places in it, so that a resumed run computes
every image in the same batch shape, and its scores are the same to the last bit.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from refiner_cli.data.crop import Crop, Pixels
from refiner_cli.data.image_file import UnreadableError
from refiner_cli.data.workers import init_worker
from refiner_cli.inference.scan import ImageFile

FILES_PER_TASK = 8  # files that a process gets at once
Outcome = Pixels | str  # H x W x 3 uint8, or why there are none


@dataclass(frozen=True)
class Batch:
    """Files that go through the model together."""

    number: int
    size: int  # wanted or not
    wanted: tuple[tuple[int, ImageFile], ...]  # place in the group, file

    @property
    def files(self) -> list[Path]:
        return [found.file for _, found in self.wanted]


def make_batches(
    found: Iterable[ImageFile], size: int, wanted: Callable[[ImageFile], bool]
) -> Iterator[Batch]:
    """Yield the groups in which anything is wanted."""
    stream, number = iter(found), 0
    while some := list(islice(stream, size)):
        group = Batch(number, len(some), tuple((i, one) for i, one in enumerate(some) if wanted(one)))
        if group.wanted:
            yield group
        number += 1


def decode_batches(some: Iterable[Batch], crop: Crop, workers: int) -> Iterator[tuple[Batch, list[Outcome]]]:
    """Decode the wanted files of every group; ``workers`` processes work ahead, 0 stands for this one.

    A file on which a decoder crashes costs its process, and gets an outcome that says so.
    """
    if workers == 0:
        for group in some:
            yield group, decode_all(group.files, crop)
        return
    decoders = Decoders(workers, crop)
    ahead: deque[tuple[Batch, list[DecodeTask]]] = deque()
    try:
        for group in some:
            ahead.append((group, [decoders.start(files) for files in split_chunks(group.files)]))
            # Two chunks a process are on their way, and one group is ready when the model is.
            if (len(ahead) - 1) * group.size >= 2 * workers * FILES_PER_TASK and len(ahead) > 2:
                yield decoders.finish_group(*ahead.popleft())
        while ahead:
            yield decoders.finish_group(*ahead.popleft())
    finally:
        decoders.close()


def decode_all(files: Sequence[Path], crop: Crop) -> list[Outcome]:
    """What a decoding process does."""
    return [decode_one(file, crop) for file in files]


def decode_one(file: Path, crop: Crop) -> Outcome:
    try:
        return crop.load(file)
    except UnreadableError as reason:
        return str(reason)


def split_chunks(files: Sequence[Path]) -> list[Sequence[Path]]:
    return [files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)]


@dataclass(frozen=True)
class DecodeTask:
    """Files on their way."""

    files: Sequence[Path]
    future: Future[list[Outcome]]


class Decoders:
    """A pool of processes that outlives their crashes."""

    def __init__(self, workers: int, crop: Crop) -> None:
        self.workers, self.crop = workers, crop
        self.pool = self.fresh(workers)

    @staticmethod
    def fresh(workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=init_worker)

    def start(self, files: Sequence[Path]) -> DecodeTask:
        try:
            return DecodeTask(files, self.pool.submit(decode_all, files, self.crop))
        except BrokenExecutor:
            self.close()
            self.pool = self.fresh(self.workers)
            return DecodeTask(files, self.pool.submit(decode_all, files, self.crop))

    def finish_group(self, group: Batch, tasks: Sequence[DecodeTask]) -> tuple[Batch, list[Outcome]]:
        return group, [outcome for task in tasks for outcome in self.finish(task)]

    def finish(self, task: DecodeTask) -> list[Outcome]:
        try:
            return task.future.result()
        except BrokenExecutor:
            return self.one_by_one(task.files)

    def one_by_one(self, files: Sequence[Path]) -> list[Outcome]:
        """Find out which file it is that processes die of."""
        outcomes: list[Outcome] = []
        lone = self.fresh(1)
        for file in files:
            try:
                outcomes.append(lone.submit(decode_one, file, self.crop).result())
            except BrokenExecutor:
                outcomes.append("the process that decoded it died")
                lone.shutdown()
                lone = self.fresh(1)
        lone.shutdown()
        return outcomes

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
