"""Out of memory: how it is recognised, and how work is retried in smaller pieces."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from refiner_cli.core.runtime.log import LogFn
from refiner_cli.errors import RefinerError

# PyTorch's allocator raises OutOfMemoryError on CUDA; all else is a RuntimeError with one of these texts.
OOM_MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cublas_status_alloc_failed",  # cuBLAS on CUDA, beside PyTorch's allocator
)
M_MMAP_THRESHOLD = -3  # of mallopt(3)
MAPPED = 2**20  # bytes from which on an allocation is mapped, and unmapped as soon as it is freed
T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch or Python ran out of memory, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(message in text for message in OOM_MESSAGES)


def release_memory(device: torch.device) -> None:
    """Return unused memory to the device. Call it after the exception is gone: it holds tensors."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def return_freed_memory() -> bool:
    """Let the C library give large freed tensors back to the system at once from now on; whether it can.

    glibc does so until the first one is freed; from then on it keeps memory of that size for later, which
    saves the system's clearing of pages (a fifth of a training step on a CPU) but leaves holes between the
    tensors that stay. Other C libraries keep little of that size.
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        return False
    library.malloc_trim(0)  # the holes that there are
    return bool(library.mallopt(M_MMAP_THRESHOLD, MAPPED))


class OomRetry:
    """Computes batches whole as long as they fit, and in smaller and smaller pieces once they do not.

    Args:
        log: receives a line when the pieces become smaller.
    """

    def __init__(self, log: LogFn) -> None:
        self.log = log
        self.limit: int | None = None

    def run(self, compute: Callable[[Tensor], list[T]], images: Tensor) -> list[T]:
        """``compute`` over ``B x ...``, one result per image.

        Raises:
            RefinerError: not even one image fits.
        """
        results: list[T] = []
        while len(results) < len(images):
            step = self.limit or len(images)
            try:
                results += compute(images[len(results) : len(results) + step])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                size = min(step, len(images) - len(results))
                if size == 1:
                    raise RefinerError(
                        f"There is not enough memory on {images.device} for a single image.",
                        hint="Use --device cpu, fewer candidates, or a smaller backbone.",
                    ) from None
                self.limit = size // 2
                self.log(f"out of memory with {size} images at once; continuing with {self.limit}")
            else:
                continue
            release_memory(images.device)
        return results
