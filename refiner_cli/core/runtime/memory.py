"""Out of memory: how it is recognised, and how work is retried in smaller pieces."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from refiner_cli.core.runtime.log import LogFn
from refiner_cli.errors import RefinerError

# PyTorch raises OutOfMemoryError on CUDA alone; elsewhere it is a RuntimeError with one of these texts.
OOM_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory")
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
