"""How many images go through the model at once: found by the machine, halved when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from refiner_cli.core.runtime.device import free_memory
from refiner_cli.errors import RefinerError
from refiner_cli.inference.recogniser import Recogniser

LARGEST = {"cuda": 256, "mps": 64, "cpu": 32}  # more gains nothing (on a CPU the caches lose)
SHARE = 0.5  # of the free memory
TEXT_COPIES = 6  # of the scores, in float64: total, softmax, and what sorting takes
TOKEN_COPIES = 16  # of a layer's float32 activations
PATCH = 14  # pixels; larger patches take less
T = TypeVar("T")


def pick_batch(wanted: int, recogniser: Recogniser) -> tuple[int, str]:
    """Images encoded at once, and why; 0 leaves it to the machine."""
    if wanted:
        return wanted, "asked for"
    model, crop = recogniser.model, recogniser.preprocess.crop
    tokens = crop.height * crop.width // PATCH**2 + 1
    image = tokens * model.backbone.visual.width * 4 * TOKEN_COPIES
    image += len(recogniser.space.pairs) * 8 * TEXT_COPIES
    fits = max(1, int(SHARE * free_memory(model.device) / image))
    batch = min(LARGEST.get(model.device.type, 32), 1 << (fits.bit_length() - 1))
    return batch, f"auto: about {image / 2**20:.0f} MiB an image"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch said so; on a CPU it has no exception of its own for that."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    )


class Pieces:
    """Runs batches whole as long as they fit, and in ever smaller pieces once they do not."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.limit: int | None = None

    def run(self, compute: Callable[[Tensor], list[T]], images: Tensor) -> list[T]:
        """``compute`` over ``B x ...``, one result an image.

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
                self.tell(f"out of memory with {size} images at once: going on with {self.limit}")
            else:
                continue
            if images.device.type == "cuda":  # after the traceback has let go of its tensors
                torch.cuda.empty_cache()
        return results
