"""Batches of preprocessed images, decoded ahead of the device.

Pixels travel as 8-bit frames, a quarter of the bytes of float32, and are normalised on the device. An image
that cannot be read stops the run with its path: nothing is left out or replaced.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from refiner_cli.core.runtime.device import to_device
from refiner_cli.data.crop import Pixels
from refiner_cli.data.images import Augment, Preprocess, decode, seed_of
from refiner_cli.errors import DatasetError, RefinerError
from refiner_cli.machine import cores, semaphores_work, shared_memory

PREFETCH = 2  # batches that each process decodes ahead
STALL_SECONDS = 600  # without a batch, after which a decoding process counts as hanging
SMALL_SHARED_MEMORY = 2**30  # bytes; Docker gives a container 64 MiB


@dataclass(frozen=True)
class ImageBatch:
    """Images and which rows of the list they are."""

    images: Tensor  # B x 3 x H x W float32; on its way to the device frames, B x H x W x 3 uint8
    rows: Tensor  # B int64

    def pin_memory(self) -> ImageBatch:
        """The batch in page-locked memory, from where a GPU fetches it while it computes."""
        return ImageBatch(self.images.pin_memory(), self.rows)


@dataclass(frozen=True)
class PipedBatch:
    """A batch on its way through a pipe: arrays, because torch would put tensors into shared memory."""

    images: npt.NDArray[np.uint8]  # B x H x W x 3
    rows: npt.NDArray[np.int64]  # B


class ImageTransform(Protocol):
    """The two halves of preprocessing: frames in the process that decodes, the rest on the device."""

    @property
    def side(self) -> int | None:
        """Pixels that a side may be reduced to while decoding, as in ``data.decode.read``; None: none."""
        ...

    def frame(self, image: Any, view: int, row: int) -> Pixels:
        """An image -> ``H x W x 3`` uint8."""
        ...

    def finish(self, frames: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
        """Frames ``B x H x W x 3`` uint8, of (view, row) each -> ``B x 3 x H x W`` float32."""
        ...


class ImageFiles(Dataset[tuple[Tensor | DatasetError, int]]):
    """Files by key. An error comes back as a value, for it would lose its type between processes."""

    def __init__(self, files: Sequence[Path], transform: ImageTransform) -> None:
        self.files = files
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: int) -> tuple[Tensor | DatasetError, int]:
        view, row = divmod(key, len(self.files))
        try:
            image = decode(self.files[row], self.transform.side)
            return torch.from_numpy(self.transform.frame(image, view, row)), key
        except DatasetError as error:
            return error, key


@dataclass(frozen=True)
class EvalTransform:
    """Evaluation: the backbone's preprocessing, from the complete image."""

    preprocess: Preprocess
    side: int | None = None

    def frame(self, image: Any, view: int, row: int) -> Pixels:  # noqa: ARG002 - they matter to TrainTransform
        return self.preprocess.frame(image)

    def finish(self, frames: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:  # noqa: ARG002
        return self.preprocess.normalise(frames)


@dataclass(frozen=True)
class TrainTransform:
    """Training: random, but a function of (seed, view, row); the view is the epoch."""

    augment: Augment
    seed: int

    @property
    def side(self) -> int | None:
        return self.augment.side

    def frame(self, image: Any, view: int, row: int) -> Pixels:
        return self.augment.frame(image, seed_of(self.seed, view, row))

    def finish(self, frames: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
        return self.augment.finish(frames, [seed_of(self.seed, view, row) for view, row in places])


def collate(items: list[tuple[Tensor | DatasetError, int]]) -> ImageBatch | PipedBatch | DatasetError:
    """Stack a batch, or return its first error; in the place of rows the batch has the keys."""
    pixels = []
    for item, _ in items:
        if isinstance(item, DatasetError):
            return item
        pixels.append(item)
    images, rows = torch.stack(pixels), torch.tensor([key for _, key in items])
    worker = get_worker_info()
    if worker is None or fits_shared_memory(images.nbytes, worker.num_workers):
        return ImageBatch(images, rows)
    return PipedBatch(images.numpy(), rows.numpy())


def fits_shared_memory(batch_bytes: int, workers: int) -> bool:
    """Whether all batches that ``workers`` processes may have under way fit into what is free.

    A process that finds no room there is killed, or its batch is lost and the loop waits for it for ever.
    """
    free = shared_memory()
    return free is None or free > batch_bytes * (PREFETCH * workers + 2)


def single_thread(worker: int) -> None:  # noqa: ARG001 - DataLoader's signature
    """Workers decode; more threads in each would only fight for the cores."""
    torch.set_num_threads(1)


def init_loader_worker(worker: int) -> None:
    """Leave signals to the whole process group to the training loop: its workers end when it does."""
    single_thread(worker)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def worker_error(error: RuntimeError) -> Exception:
    """The sentence for a decoding process that ended or hangs; any other error as it is.

    torch raises this one out of a signal handler: mostly where the loop waits for a batch, but it
    may be anywhere.
    """
    if "DataLoader timed out" in str(error):
        return RefinerError(
            f"No batch of images arrived for {STALL_SECONDS} s: a process that decodes images hangs.",
            hint="Usually a file system does not answer; otherwise try --set train.num_workers=0.",
        )
    return worker_ended(error) if "DataLoader worker" in str(error) else error


def worker_ended(error: Exception) -> RefinerError:
    return RefinerError(
        f"A process that decodes images ended unexpectedly ({str(error).strip().rstrip('.')}).",
        hint="Often the memory is too small: try fewer with --set train.num_workers=N, or 0.",
    )


def load_batches(
    files: Sequence[Path],
    transform: ImageTransform,
    order: Iterable[Sequence[int]],
    *,
    device: torch.device,
    workers: int,
) -> Iterator[ImageBatch]:
    """Yield the batches that ``order`` lists, on the device; the decoding processes live as long as that.

    Args:
        order: batches of keys; a key is a row, plus the number of files for every further view of it.

    Raises:
        DatasetError: an image cannot be read.
        RefinerError: a decoding process ended.
    """
    loader: DataLoader[Any] = DataLoader(
        ImageFiles(files, transform),
        batch_sampler=order,  # type: ignore[arg-type]  # any iterable of row lists will do
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        timeout=STALL_SECONDS if workers else 0,
        worker_init_fn=init_loader_worker,
        pin_memory=device.type == "cuda" and workers > 0,
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
        if isinstance(batch, PipedBatch):
            batch = ImageBatch(torch.from_numpy(batch.images), torch.from_numpy(batch.rows))
        views, rows = batch.rows // len(files), batch.rows % len(files)
        places = list(zip(views.tolist(), rows.tolist(), strict=True))
        yield ImageBatch(transform.finish(to_device(batch.images, device), places), rows)


def sequential_batches(count: int, size: int) -> list[range]:
    """Batches of ``size`` rows, first to last."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def pick_num_workers(requested: int, device: torch.device) -> tuple[int, str]:
    """How many processes decode, and why; ``-1``: chosen from the number of cores."""
    have = cores()
    if requested >= 0:
        count, reason = requested, "requested"
    elif device.type == "cpu":
        count = 0 if have <= 2 else min(4, have // 4)
        reason = f"auto: the model itself computes on the {have} cores"
    else:
        count, reason = min(8, max(1, have - 1)), f"auto: {have} cores, one is left for the loop"
    if count and not semaphores_work():
        return (
            0,
            f"not the {count} {reason.split(':')[0]}: processes cannot share locks, /dev/shm is not usable",
        )
    free = shared_memory()
    if count and free is not None and free < SMALL_SHARED_MEMORY:
        reason += (
            f"; /dev/shm has {free / 2**20:.0f} MiB free, so batches that do not fit are sent through pipes"
        )
    return count, reason
