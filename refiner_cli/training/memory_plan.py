"""How a training step fits into memory: what a step takes is measured, on two and on four images.

A step's peak grows in a straight line with the images computed at once. So two small steps tell the peak
of every larger one, on any device and for any method, tower and precision: no formula has to be kept true.
What is counted are the bytes of tensors. On a CPU a process takes up to :data:`KEPT` times as much, because
the C library keeps freed memory for later, most of it where activations are recomputed. Where that would not
fit, freed memory goes back at once.

Smaller micro-batches cost next to nothing as long as they keep the device busy, because the text is
encoded once a step; recomputing activations costs about a third more time. The plan therefore halves the
micro-batch down to :data:`LEAST_BUSY`, then recomputes, then halves on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

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
from refiner_cli.training.gradient_step import GradientStep, copy_buffers, restore_buffers

BUDGET = 0.9  # share of the free memory that a plan may use
PROBED = (2, 4)  # images of the two steps that are measured; with one, the text may make the peak
KEPT = (
    2.5  # main memory that a process takes at most per byte of tensors while it keeps what is freed, measured
)
LEAST_BUSY = 8  # images at once that still keep a device busy
Probe = Callable[[Tensor], object]  # one step on images ``B x 3 x H x W``, which leaves its gradients


@dataclass(frozen=True)
class MemoryPlan:
    """How to compute a batch."""

    micro_batch: int  # images at once
    gradient_checkpointing: bool
    peak: int  # bytes of tensors that a step is expected to take beyond the weights
    reason: str


@dataclass(frozen=True)
class StepMemory:
    """Peak bytes of a step of ``b`` images: ``base + b * per_image``."""

    base: int
    per_image: int

    def peak(self, images: int) -> int:
        return self.base + images * self.per_image

    def largest(self, budget: float) -> int:
        """The largest number of images whose peak is within the budget; it may be below 1."""
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

    def drop(self, identity: int, size: int) -> None:
        self.known.discard(identity)
        self.live -= size


def storages(values: Any) -> list[torch.UntypedStorage]:
    """What the tensors among nested values are stored in."""
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def probe_memory(probe: Probe, image: Tensor) -> StepMemory:
    """The memory of a step, from one of each of :data:`PROBED`.

    Args:
        image: ``1 x 3 x H x W`` on the device.
    """
    few, more = (peak_of(probe, image.expand(count, *image.shape[1:])) for count in PROBED)
    per_image = max(1, (more - few) // (PROBED[1] - PROBED[0]))
    return StepMemory(few - PROBED[0] * per_image, per_image)


def peak_of(probe: Probe, images: Tensor) -> int:
    """Peak bytes of the tensors of one step beyond what is held before it."""
    if images.device.type == "cuda":
        release_memory(images.device)
        before = torch.cuda.memory_allocated(images.device)
        torch.cuda.reset_peak_memory_stats(images.device)
        probe(images)
        return torch.cuda.max_memory_allocated(images.device) - before
    with LivePeak() as counted:
        probe(images)
    return counted.peak


def memory_left(model: Model, config: TrainConfig) -> int:
    """Bytes for a step beside the weights: those that are free, or what ``train.memory_gb`` leaves."""
    if not config.memory_gb:
        return free_memory(model.device)
    return max(0, round(config.memory_gb * 1e9) - bytes_of([*model.parameters(), *model.buffers()]))


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
        log: receives a line with the plan.
        ranks: the processes that share a batch.

    Returns:
        The plan. The model's memory options say whether activations are recomputed.
    """
    step = plain_step(model, space, config, precision, log)

    def probe(images: Tensor) -> None:
        step.backward(images, torch.zeros(len(images), dtype=torch.int64, device=images.device), 0)

    plan = plan_memory(model, probe, image, config, len(ranks.shard_rows(range(config.batch_size))))
    log(f"memory: {plan.reason}")
    return plan


def plan_memory(model: Model, probe: Probe, image: Tensor, config: TrainConfig, batch: int) -> MemoryPlan:
    """The plan for a step of ``batch`` images; ``probe`` is one step on images, ``image`` one of them."""
    model.train()
    before = copy_buffers(model)  # the steps that are measured are no training
    parameters = list(model.trainable_parameters().values())
    learned = bytes_of(parameters)
    # Beside a step's own peak: the images of the batch, and Adam's moments, which come with a first step.
    beside = batch * bytes_of([image]) + 2 * learned
    free = memory_left(model, config)
    wanted = min(batch, config.micro_batch or LEAST_BUSY)
    plan = None
    for recompute in {"auto": (False, True), "on": (True,), "off": (False,)}[config.gradient_checkpointing]:
        model.memory = replace(model.memory, gradient_checkpointing=recompute)
        step = probe_memory(probe, image)
        fit = config.micro_batch or batch
        if fit < batch or step.peak(batch) + beside > BUDGET * free:  # in pieces
            # The gradients of the first pieces are held while the next are computed.
            fit = config.micro_batch or max(1, step.largest(BUDGET * free - beside - learned))
        fit = min(batch, fit)
        plan = describe_plan(step, batch, fit, free, beside, learned, recompute=recompute)
        if fit >= wanted and plan.peak <= BUDGET * free:
            break
    assert plan is not None  # noqa: S101 - the loop runs at least once
    for parameter in parameters:
        parameter.grad = None
    restore_buffers(before)
    if model.device.type == "cpu" and KEPT * plan.peak > BUDGET * free and return_freed_memory():
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
