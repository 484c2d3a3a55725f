"""Forward and backward pass of one batch, in micro-batches where it does not fit into memory.

The text vectors depend on no image: they are computed once, every micro-batch leaves its gradients at
them, and one backward pass carries those through the text tower. So micro-batches cost no second text
pass, and the gradients are those of the whole batch, but for batch normalisation: it takes mean and
variance of the images that are computed at once, and a log says so. When memory runs out, the micro-batch
is halved and the images are done again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from refiner_cli.config import TrainConfig
from refiner_cli.core.models.base import Model, Scores, TextBank
from refiner_cli.core.runtime.device import attention_kernels, autocast
from refiner_cli.core.runtime.log import LogFn
from refiner_cli.core.runtime.memory import is_out_of_memory, release_memory
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import RefinerError


class GradientStep:
    """Computes the gradients of batches in micro-batches of at most ``micro_batch`` images.

    Args:
        space: the pairs of the loss.
        encode: returns the text vectors of the space, with their graph.
        scale: what the loss is multiplied by before the backward pass, as a GradScaler does.
        log: receives a line when the micro-batch becomes smaller.
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
        log: LogFn,
    ) -> None:
        self.model, self.space, self.config, self.precision = model, space, config, precision
        self.encode, self.scale, self.log = encode, scale, log
        self.micro_batch = config.batch_size
        self.between: Callable[[], object] = lambda: None  # called between text and images, and after them

    def backward(
        self, images: Tensor, truth: Tensor, seed: int, *, weight: float = 1.0
    ) -> tuple[Tensor, Scores]:
        """Set the gradients of a batch; return ``weight`` times its loss, on the device, and its scores.

        Args:
            images: ``B x 3 x H x W``.
            truth: ``B`` int64, indices into the pairs of the space.
            seed: of the step's random numbers; the same when the step is repeated in smaller pieces.
            weight: of this batch, where several processes share one.

        Raises:
            RefinerError: a single image does not fit, or the text does not.
        """
        for p in self.model.trainable_parameters().values():
            p.grad = None
        # The text comes first and once: its random numbers do not depend on the number of images, and
        # what processes exchange for it is not exchanged twice.
        torch.manual_seed(seed)
        with attention_kernels(self.model.device):
            with text_memory_errors(), autocast(self.model.device, self.precision):
                bank = self.encode()
            self.between()
            while (done := self.accumulate(images, truth, bank, seed, weight)) is None:
                self.halve_micro_batch(len(images))
            loss, scores, leaves = done
            self.between()
            reached = [(whole, leaf.grad) for whole, leaf in leaves if leaf.grad is not None]
            if reached:
                with text_memory_errors():
                    torch.autograd.backward([whole for whole, _ in reached], [grad for _, grad in reached])
        return loss, scores

    def accumulate(
        self, images: Tensor, truth: Tensor, bank: TextBank, seed: int, weight: float
    ) -> tuple[Tensor, Scores, list[tuple[Tensor, Tensor]]] | None:
        """Loss, scores, the bank's tensors with leaves that hold their gradients; None: out of memory."""
        cut, leaves = detach_bank(bank)
        before = copy_buffers(self.model)
        loss, scores = torch.zeros((), device=self.model.device), []
        torch.manual_seed(seed + 1)
        try:
            for pixels, pairs in zip(
                images.split(self.micro_batch), truth.split(self.micro_batch), strict=True
            ):
                with autocast(self.model.device, self.precision):
                    found = self.model(pixels, cut)
                    share = weight * len(pairs) / len(truth)
                    part = self.model.loss(found, pairs, self.space, self.config) * share
                self.scale(part).backward()
                loss += part.detach()
                scores.append(found)
        except RuntimeError as error:  # OutOfMemoryError is one
            if not is_out_of_memory(error):
                raise
            for p in self.model.trainable_parameters().values():
                p.grad = None
            restore_buffers(before)
            return None  # the exception is gone then, and the failed graph with it
        return loss, concat_scores(scores), leaves

    def halve_micro_batch(self, batch: int) -> None:
        """Use half as many images at once from now on. Raises RefinerError if that is less than one."""
        now = min(self.micro_batch, batch)
        if now == 1:
            raise RefinerError(
                "Out of memory with a single image at a time.",
                hint="Use --set train.gradient_checkpointing=on, a smaller train.text_chunk_size "
                "or --precision bf16.",
            )
        self.micro_batch = (now + 1) // 2
        release_memory(self.model.device)
        self.log(
            f"out of memory with {now} images at a time; from now on {self.micro_batch}, "
            f"accumulated to the same batch of {self.config.batch_size}"
        )
        if note := batch_norm_note(self.model, self.micro_batch, self.config.batch_size):
            self.log(note)


def batch_norms(model: Model) -> list[str]:
    """The names of the layers that normalise over a batch in training; the frozen towers do not."""
    frozen = set(model.clip.modules())
    return [
        name for name, layer in model.named_modules() if isinstance(layer, _BatchNorm) and layer not in frozen
    ]


def batch_norm_note(model: Model, at_once: int, batch: int) -> str | None:
    """What it means that a model computes ``at_once`` images of a ``batch``; None: nothing."""
    layers = batch_norms(model)
    if at_once >= batch or not layers:
        return None
    return (
        f"batch normalisation ({', '.join(layers)}) takes mean and variance of {at_once} images, not of the "
        f"batch of {batch}: the model learns something else than with all {batch} at once. For that use one "
        f"process, no train.micro_batch, and where memory is short --set train.gradient_checkpointing=on"
    )


@contextlib.contextmanager
def text_memory_errors() -> Iterator[None]:
    """Smaller micro-batches do not help the text: name what does."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise RefinerError(
            "Out of memory while encoding the prompts.",
            hint="Set train.text_chunk_size to less than the log reports, or use --precision bf16.",
        ) from None


def copy_buffers(model: Model) -> list[tuple[Tensor, Tensor]]:
    """The buffers outside the frozen towers, each with a copy: a forward pass in training may change them.

    Batch normalisation does, with its running statistics.
    """
    frozen = {id(buffer) for buffer in model.clip.buffers()}
    return [(buffer, buffer.clone()) for buffer in model.buffers() if id(buffer) not in frozen]


@torch.no_grad()
def restore_buffers(copies: list[tuple[Tensor, Tensor]]) -> None:
    """Put back what :func:`copy_buffers` copied."""
    for buffer, before in copies:
        buffer.copy_(before)


def concat_scores(parts: list[Scores]) -> Scores:
    """The scores of all micro-batches, without graph."""

    def cat(tensors: list[Tensor | None]) -> Tensor | None:
        present = [t.detach() for t in tensors if t is not None]
        return torch.cat(present) if present else None

    composition = torch.cat([part.composition.detach() for part in parts])
    return Scores(composition, cat([part.state for part in parts]), cat([part.object for part in parts]))


def detach_bank(bank: TextBank) -> tuple[TextBank, list[tuple[Tensor, Tensor]]]:
    """The bank with leaves in place of the tensors that have a graph, and each of those with its leaf."""
    leaves: dict[str, Tensor] = {}
    tensors = []
    for field in dataclasses.fields(bank):
        value = getattr(bank, field.name)
        if isinstance(value, Tensor) and value.requires_grad:
            leaves[field.name] = value.detach().requires_grad_()
            tensors.append((value, leaves[field.name]))
    return dataclasses.replace(bank, **leaves), tensors  # type: ignore[arg-type]
