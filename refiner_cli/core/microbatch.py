"""Forward and backward of one batch, in pieces where it does not fit into memory.

The text vectors depend on no image: they are computed once, the pieces leave their gradients at
them, and one backward pass takes those through the text tower. So pieces cost no second text pass,
and the gradients are those of the whole batch. Where memory runs out, the pieces are halved and
the step is done again.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable

import torch
from torch import Tensor

from refiner_cli.config import TrainConfig
from refiner_cli.core.device import attention_kernels, computing
from refiner_cli.core.model import Model, TextBank
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import RefinerError

Tell = Callable[[str], None]

# PyTorch raises OutOfMemoryError on CUDA alone; elsewhere it is a RuntimeError with these words.
SIGNS = ("out of memory", "can't allocate memory", "not enough memory")


class MicroBatches:
    """Computes gradients of batches in pieces of at most ``size`` images.

    Args:
        space: the pairs of the loss.
        scale: what the loss is multiplied by before the backward pass, as a GradScaler does.
        tell: hears when the pieces become smaller.
    """

    def __init__(
        self,
        model: Model,
        space: LabelSpace,
        config: TrainConfig,
        precision: torch.dtype,
        *,
        scale: Callable[[Tensor], Tensor],
        tell: Tell,
    ) -> None:
        self.model, self.space, self.config, self.precision = model, space, config, precision
        self.scale, self.tell = scale, tell
        self.size = config.batch

    def backward(self, images: Tensor, truth: Tensor, seed: int) -> float:
        """Set the gradients of a batch and return its loss.

        Args:
            images: ``B x 3 x H x W``.
            truth: ``B`` int64, indices into the pairs of the space.
            seed: of the step's random numbers; the same when the step is done again in smaller pieces.

        Raises:
            RefinerError: a single image does not fit.
        """
        while True:
            for p in self.model.learned().values():
                p.grad = None
            torch.manual_seed(seed)
            try:
                return self.attempt(images, truth)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except block: the exception would keep the failed graph alive.
            self.halve(len(images))

    def attempt(self, images: Tensor, truth: Tensor) -> float:
        B, loss = len(truth), 0.0
        with attention_kernels(self.model.device):
            with computing(self.model.device, self.precision):
                bank = self.model.encode_pairs(self.space)
            cut, tensors = detached(bank)
            for pixels, pairs in zip(images.split(self.size), truth.split(self.size), strict=True):
                with computing(self.model.device, self.precision):
                    scores = self.model.score(self.model.encode_images(pixels), cut)
                    part = self.model.loss(scores, pairs, self.space, self.config) * (len(pairs) / B)
                self.scale(part).backward()
                loss += part.item()
            reached = [(whole, leaf.grad) for whole, leaf in tensors if leaf.grad is not None]
            if reached:
                torch.autograd.backward([whole for whole, _ in reached], [grad for _, grad in reached])
        return loss

    def halve(self, batch: int) -> None:
        now = min(self.size, batch)
        if now == 1:
            raise RefinerError(
                "Out of memory with a single image at a time.",
                hint="Use --set train.grad_checkpoint=true, a smaller train.text_chunk or --precision bf16.",
            )
        self.size = (now + 1) // 2
        gc.collect()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.model.device.type == "mps":
            torch.mps.empty_cache()
        self.tell(
            f"Out of memory with {now} images at a time: from now on {self.size}, "
            f"accumulated to the same batch of {self.config.batch}."
        )


def detached(bank: TextBank) -> tuple[TextBank, list[tuple[Tensor, Tensor]]]:
    """The bank with leaves in place of the tensors that have a graph, and each of those with its leaf."""
    leaves: dict[str, Tensor] = {}
    tensors = []
    for field in dataclasses.fields(bank):
        value = getattr(bank, field.name)
        if isinstance(value, Tensor) and value.requires_grad:
            leaves[field.name] = value.detach().requires_grad_()
            tensors.append((value, leaves[field.name]))
    return dataclasses.replace(bank, **leaves), tensors  # type: ignore[arg-type]


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error).lower() for sign in SIGNS)
