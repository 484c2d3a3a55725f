"""How a training step fits into memory: what a step takes is measured, on two and on four images.

The peak of a step's images grows in a straight line with the images computed at once, the peak of its text
stays. So two small steps tell the peak of every larger one, on any device and for any method, tower and
precision: no formula has to be kept true.
What is counted are the bytes of tensors. On a CPU a process takes up to :data:`HELD_PER_BYTE` times as much,
because the C library keeps freed memory for later, most of it where activations are recomputed. Where that
would not fit, freed memory goes back at once.

Smaller micro-batches cost next to nothing as long as they keep the device busy, because the text is
encoded once a step; recomputing activations costs about a third more time. The plan therefore halves the
micro-batch down to :data:`LEAST_BUSY`, then recomputes, then halves on. Where a model normalises over the
images computed at once it recomputes first: smaller micro-batches change what such a model learns.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from refiner_cli.config import TrainConfig
from refiner_cli.core.models.base import Model
from refiner_cli.core.runtime.device import GIB, free_memory
from refiner_cli.core.runtime.distributed import SINGLE_PROCESS, DistributedContext
from refiner_cli.core.runtime.log import LogFn
from refiner_cli.core.runtime.memory import release_memory, return_freed_memory
from refiner_cli.data.labels import LabelSpace
from refiner_cli.training.gradient_step import (
    GradientStep,
    batch_norm_note,
    batch_norms,
    copy_buffers,
    restore_buffers,
)

BUDGET = 0.9  # share of the free memory that a plan may use
PROBED = (2, 4)  # images of the two steps that are measured
HELD_PER_BYTE = 2.5  # main memory per byte of tensors, at most, of a process that keeps what is freed
LEAST_BUSY = 8  # images at once that still keep a device busy


@dataclass(frozen=True)
class MemoryPlan:
    """How to compute a batch."""

    micro_batch: int  # images at once
    gradient_checkpointing: bool
    peak: int  # bytes of tensors that a step is expected to take beyond the weights
    reason: str


@dataclass(frozen=True)
class StepMemory:
    """Peak bytes of a step of ``b`` images: ``text``, or ``base + b * per_image`` where that is more."""

    text: int
    base: int
    per_image: int

    def peak(self, images: int) -> int:
        return max(self.text, self.base + images * self.per_image)

    def largest(self, budget: float) -> int:
        """The largest number of images that are within the budget; it may be below 1."""
        return int((budget - self.base) // self.per_image)


class LivePeak(TorchDispatchMode):
    """Counts the bytes of all tensors that are made and still held, and their largest sum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        held = {storage._cdata for storage in storages((args, kwargs))}  # noqa: SLF001 - which one it is
        for storage in storages(out):
            if storage._cdata not in held:  # noqa: SLF001
                self.add(storage)
        return out

    def add(self, storage: torch.UntypedStorage) -> None:
        identity, size = storage._cdata, storage.nbytes()  # noqa: SLF001
        if not size or identity in self.known:
            return
        self.known.add(identity)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.drop, identity, size)

    def restart(self) -> None:
        """From now on, the peak is that of what follows."""
        self.peak = self.live

    def drop(self, identity: int, size: int) -> None:
        self.known.discard(identity)
        self.live -= size


class CudaPeak:
    """The same from the GPU's own allocator."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0

    def __enter__(self) -> Self:
        release_memory(self.device)
        self.before = torch.cuda.memory_allocated(self.device)
        self.restart()
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) - self.before

    def restart(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)


def peak_meter(device: torch.device) -> LivePeak | CudaPeak:
    """Counts the bytes of the tensors that are made within it."""
    return CudaPeak(device) if device.type == "cuda" else LivePeak()


def storages(values: Any) -> list[torch.UntypedStorage]:
    """What the tensors among nested values are stored in."""
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def probe_memory(step: GradientStep, image: Tensor) -> StepMemory:
    """The memory of a step, from one of each of :data:`PROBED`.

    Args:
        image: ``1 x 3 x H x W`` on the device.
    """
    (text, few), (_, more) = (peaks_of(step, image.expand(count, *image.shape[1:])) for count in PROBED)
    per_image = max(1, (more - few) // (PROBED[1] - PROBED[0]))
    return StepMemory(text, few - PROBED[0] * per_image, per_image)


def peaks_of(step: GradientStep, images: Tensor) -> tuple[int, int]:
    """Peak bytes of tensors beyond what is held before a step: of its text, and of its images."""
    found: list[int] = []
    truth = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    with peak_meter(images.device) as meter:

        def note() -> None:
            found.append(meter.peak)
            meter.restart()

        step.between = note
        step.backward(images, truth, 0)
        note()
    encoded, of_images, carried_back = found
    return max(encoded, carried_back), of_images


def memory_left(model: Model, config: TrainConfig, ranks: DistributedContext = SINGLE_PROCESS) -> int:
    """Bytes for a step beside the weights: those that are free, or what ``train.memory_gb`` leaves.

    Args:
        ranks: the processes of a machine share its memory, unless each has a GPU.
    """
    sharing = 1 if model.device.type == "cuda" else ranks.local_size
    if not config.memory_gb:
        return free_memory(model.device) // sharing
    weights = bytes_of([*model.parameters(), *model.buffers()])
    return max(0, round(config.memory_gb * 1e9) // sharing - weights)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """What tensors take together, each in its own memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def plain_step(
    model: Model, space: LabelSpace, config: TrainConfig, precision: torch.dtype, log: LogFn
) -> GradientStep:
    """A training step that shares nothing with other processes and scales no loss."""
    return GradientStep(
        model, space, config, precision, encode=lambda: model.encode_pairs(space),
        scale=lambda loss: loss, log=log,
    )  # fmt: skip


def fit_step(
    model: Model,
    space: LabelSpace,
    config: TrainConfig,
    precision: torch.dtype,
    image: Tensor,
    log: LogFn,
    ranks: DistributedContext = SINGLE_PROCESS,
) -> MemoryPlan:
    """Choose how this process's share of a batch is computed within the free memory, and say why.

    Args:
        space: the pairs of the loss.
        image: ``1 x 3 x H x W``, or its tokens, on the model's device.
        log: receives a line with the plan, and one where it changes what the model learns.
        ranks: the processes that share a batch.

    Returns:
        The plan. The model's memory options say whether activations are recomputed.
    """
    step = plain_step(model, space, config, precision, log)
    plan = plan_memory(step, image, ranks)
    log(f"memory: {plan.reason}")
    if note := batch_norm_note(model, plan.micro_batch, config.batch_size):
        log(note)
    return plan


def plan_memory(step: GradientStep, image: Tensor, ranks: DistributedContext = SINGLE_PROCESS) -> MemoryPlan:
    """The plan for a process's share of batches of images such as ``image``."""
    model, config = step.model, step.config
    batch = len(ranks.shard_rows(range(config.batch_size)))
    model.train()
    before = copy_buffers(model)  # the steps that are measured are no training
    parameters = list(model.trainable_parameters().values())
    learned = bytes_of(parameters)
    # Beside a step's own peak: the images of the batch, and Adam's moments, which come with a first step.
    beside = batch * bytes_of([image]) + 2 * learned
    free = memory_left(model, config, ranks)
    wanted = min(batch, config.micro_batch or (batch if batch_norms(model) else LEAST_BUSY))
    plan = None
    for recompute in {"auto": (False, True), "on": (True,), "off": (False,)}[config.gradient_checkpointing]:
        model.memory = replace(model.memory, gradient_checkpointing=recompute)
        measured = probe_memory(step, image)
        fit = config.micro_batch or batch
        if fit < batch or measured.peak(batch) + beside > BUDGET * free:  # in pieces
            # The gradients of the first pieces are held while the next are computed.
            fit = config.micro_batch or max(1, measured.largest(BUDGET * free - beside - learned))
        fit = min(batch, fit)
        plan = describe_plan(measured, batch, fit, free, beside, learned, recompute=recompute)
        if fit >= wanted and plan.peak <= BUDGET * free:
            break
    assert plan is not None  # noqa: S101 - the loop runs at least once
    for parameter in parameters:
        parameter.grad = None
    restore_buffers(before)
    if model.device.type == "cpu" and HELD_PER_BYTE * plan.peak > BUDGET * free and return_freed_memory():
        plan = replace(plan, reason=f"{plan.reason}; freed memory goes back to the system at once")
    release_memory(model.device)
    return plan


def describe_plan(
    step: StepMemory, batch: int, fit: int, free: int, beside: int, gradients: int, *, recompute: bool
) -> MemoryPlan:
    """The plan where ``fit`` images go at once, with its reason.

    Args:
        beside: bytes that are held whatever is computed.
        gradients: bytes of all gradients.
    """
    pieces = -(-batch // fit)
    even = -(-batch // pieces)
    peak = step.peak(even) + beside + (gradients if pieces > 1 else 0)
    how = "activations recomputed" if recompute else "activations kept"
    whole = f"all {batch} images at once" if pieces == 1 else f"{even} of {batch} images at once"
    reason = f"{whole}, {how}: a step takes about {peak / GIB:.1f} GiB, {free / GIB:.1f} GiB are free"
    return MemoryPlan(even, recompute, peak, reason)
