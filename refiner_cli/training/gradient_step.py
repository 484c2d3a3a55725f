"""Forward and backward of one batch, in pieces where it does not fit into memory.

The text vectors depend on no image: they are computed once, the pieces leave their gradients at
them, and one backward pass takes those through the text tower. So pieces cost no second text pass,
and the gradients are those of the whole batch. Where memory runs out, the pieces are halved and
the images are done again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from refiner_cli.config import TrainConfig
from refiner_cli.core.models.base import Model, Scores, TextBank
from refiner_cli.core.runtime.device import attention_kernels, computing
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import RefinerError

Tell = Callable[[str], None]

# PyTorch raises OutOfMemoryError on CUDA alone; elsewhere it is a RuntimeError with these words.
SIGNS = ("out of memory", "can't allocate memory", "not enough memory")


class MicroBatches:
    """Computes gradients of batches in pieces of at most ``size`` images.

    Args:
        space: the pairs of the loss.
        encode: gives the text vectors of the space, with their graph.
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
        encode: Callable[[], TextBank],
        scale: Callable[[Tensor], Tensor],
        tell: Tell,
    ) -> None:
        self.model, self.space, self.config, self.precision = model, space, config, precision
        self.encode, self.scale, self.tell = encode, scale, tell
        self.size = config.batch

    def backward(
        self, images: Tensor, truth: Tensor, seed: int, *, weight: float = 1.0
    ) -> tuple[float, Scores]:
        """Set the gradients of a batch; return ``weight`` times its loss, and its scores.

        Args:
            images: ``B x 3 x H x W``.
            truth: ``B`` int64, indices into the pairs of the space.
            seed: of the step's random numbers; the same when the step is done again in smaller pieces.
            weight: of this batch, where several processes share one.

        Raises:
            RefinerError: a single image does not fit, or the text does not.
        """
        for p in self.model.learned().values():
            p.grad = None
        # The text comes first and once: what it draws at random does not depend on the number of images,
        # and what processes exchange for it is not exchanged twice.
        torch.manual_seed(seed)
        with attention_kernels(self.model.device):
            with fitting_text(), computing(self.model.device, self.precision):
                bank = self.encode()
            while (done := self.pieces(images, truth, bank, seed, weight)) is None:
                self.halve(len(images))
            loss, scores, leaves = done
            reached = [(whole, leaf.grad) for whole, leaf in leaves if leaf.grad is not None]
            if reached:
                with fitting_text():
                    torch.autograd.backward([whole for whole, _ in reached], [grad for _, grad in reached])
        return loss, scores

    def pieces(
        self, images: Tensor, truth: Tensor, bank: TextBank, seed: int, weight: float
    ) -> tuple[float, Scores, list[tuple[Tensor, Tensor]]] | None:
        """Loss, scores, the bank's tensors with leaves that hold their gradients; None: out of memory."""
        cut, leaves = detached(bank)
        loss, scores = 0.0, []
        torch.manual_seed(seed + 1)
        try:
            for pixels, pairs in zip(images.split(self.size), truth.split(self.size), strict=True):
                with computing(self.model.device, self.precision):
                    found = self.model.score(self.model.encode_images(pixels), cut)
                    share = weight * len(pairs) / len(truth)
                    part = self.model.loss(found, pairs, self.space, self.config) * share
                self.scale(part).backward()
                loss += part.item()
                scores.append(found)
        except RuntimeError as error:  # OutOfMemoryError is one
            if not is_out_of_memory(error):
                raise
            for p in self.model.learned().values():
                p.grad = None
            return None  # the exception is gone then, and the failed graph with it
        return loss, joined(scores), leaves

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


@contextlib.contextmanager
def fitting_text() -> Iterator[None]:
    """Smaller micro-batches do not help the text: say what does."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise RefinerError(
            "Out of memory while encoding the prompts.",
            hint="Set a smaller train.text_chunk than the log names, or use --precision bf16.",
        ) from None


def joined(parts: list[Scores]) -> Scores:
    """The scores of all pieces, without graph."""

    def cat(tensors: list[Tensor | None]) -> Tensor | None:
        there = [t.detach() for t in tensors if t is not None]
        return torch.cat(there) if there else None

    composition = torch.cat([part.composition.detach() for part in parts])
    return Scores(composition, cat([part.state for part in parts]), cat([part.object for part in parts]))


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
