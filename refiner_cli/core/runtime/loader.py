"""Batches of preprocessed images, decoded ahead of the device.

An image that cannot be read stops the run with its path: nothing is left out or replaced.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from refiner_cli.data.images import Preprocess, decode, seed_of
from refiner_cli.errors import DatasetError, RefinerError
from refiner_cli.machine import cores


@dataclass(frozen=True)
class ImageBatch:
    """Images and which rows of the list they are."""

    images: Tensor  # B x 3 x H x W float32
    rows: Tensor  # B int64


class ImageFiles(Dataset[tuple[Tensor | DatasetError, int]]):
    """Files by row. An error comes back as a value, for it would lose its type between processes."""

    def __init__(self, files: Sequence[Path], transform: Callable[[Any, int], Tensor]) -> None:
        self.files = files
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor | DatasetError, int]:
        try:
            return self.transform(decode(self.files[row]), row), row
        except DatasetError as error:
            return error, row


@dataclass(frozen=True)
class EvalTransform:
    """Evaluation: the backbone's preprocessing."""

    preprocess: Preprocess

    def __call__(self, image: Any, row: int) -> Tensor:  # noqa: ARG002 - rows matter to Augmented
        return self.preprocess(image)


@dataclass(frozen=True)
class TrainTransform:
    """Training: random, but a function of (seed, epoch, row)."""

    augment: Callable[[Any, int], Tensor]
    seed: int
    epoch: int

    def __call__(self, image: Any, row: int) -> Tensor:
        return self.augment(image, seed_of(self.seed, self.epoch, row))


def collate(items: list[tuple[Tensor | DatasetError, int]]) -> ImageBatch | DatasetError:
    """Stack a batch, or hand on its first error."""
    pixels = []
    for item, _ in items:
        if isinstance(item, DatasetError):
            return item
        pixels.append(item)
    return ImageBatch(torch.stack(pixels), torch.tensor([row for _, row in items]))


def single_thread(worker: int) -> None:  # noqa: ARG001 - DataLoader's signature
    """Workers decode; more threads in each would only fight for the cores."""
    torch.set_num_threads(1)


def init_worker(worker: int) -> None:
    """A signal to the whole process group is the loop's to answer: its workers end when it does."""
    single_thread(worker)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def worker_error(error: RuntimeError) -> Exception:
    """The sentence for a decoding process that ended; any other error as it is.

    torch raises this one out of a signal handler: mostly where the loop waits for a batch, but it
    may be anywhere.
    """
    return worker_ended(error) if "DataLoader worker" in str(error) else error


def worker_ended(error: Exception) -> RefinerError:
    return RefinerError(
        f"A process that decodes images ended unexpectedly ({str(error).strip().rstrip('.')}).",
        hint="Often the memory is too small: try fewer with --set train.num_workers=N, or 0.",
    )


def load_batches(
    files: Sequence[Path],
    transform: Callable[[Any, int], Tensor],
    order: Sequence[Sequence[int]],
    *,
    device: torch.device,
    workers: int,
) -> Iterator[ImageBatch]:
    """Yield the batches that ``order`` lists, each a sequence of rows, on the device.

    Raises:
        DatasetError: an image cannot be read.
        RefinerError: a decoding process ended.
    """
    loader: DataLoader[Any] = DataLoader(
        ImageFiles(files, transform),
        batch_sampler=order,  # type: ignore[arg-type]  # any iterable of row lists will do
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=init_worker,
        pin_memory=device.type == "cuda",
    )
    arriving = iter(loader)
    while True:
        try:
            batch = next(arriving)
        except StopIteration:
            return
        except RuntimeError as error:
            raise worker_error(error) from None
        except (OSError, EOFError) as error:  # its batch had arrived; the pixels were to be fetched from it
            raise (worker_ended(error) if workers else error) from None
        if isinstance(batch, DatasetError):
            raise batch
        yield ImageBatch(batch.images.to(device, non_blocking=True), batch.rows)


def sequential_batches(count: int, size: int) -> list[range]:
    """Batches of ``size`` rows, first to last."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def pick_num_workers(wanted: int, device: torch.device) -> tuple[int, str]:
    """How many processes decode, and why; ``-1`` leaves it to the machine."""
    if wanted >= 0:
        return wanted, "asked for"
    have = cores()
    if device.type == "cpu":
        count = 0 if have <= 2 else min(4, have // 4)
        return count, f"auto: the model itself computes on the {have} cores"
    return min(8, max(1, have - 1)), f"auto: {have} cores, one is left for the loop"
