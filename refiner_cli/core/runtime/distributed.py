"""The processes of one training: which rows each computes, and the sums they share.

Every process holds the whole model. It takes its share of each batch's rows and of the pairs to
encode; one flat all-reduce per step then sums the gradients of all trainable parameters, the loss and
the requests to stop, so that all processes stay equal and stop together. With one process nothing is
exchanged.

A process that ends breaks the others' connections, which Gloo notices at once. One that hangs, or whose
machine is gone, is noticed by its silence: every process sends a heartbeat every few seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import EnvironmentLacksError, RefinerError, UsageError

HEARTBEAT_SECONDS = 3.0  # between heartbeats
SILENCE_SECONDS = 30.0  # without a heartbeat, after which a process counts as lost
LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
COLLECTIVE_TIMEOUT = timedelta(hours=12)  # the others wait while the main process validates


class LostProcessError(RefinerError):
    """Another process of the training was lost."""


@dataclass(frozen=True)
class DistributedContext:
    """This process among all of one training."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on this machine: which GPU it uses
    local_size: int = 1  # processes on this machine

    @property
    def is_main(self) -> bool:
        """Whether this process writes and validates."""
        return self.rank == 0

    def shard_rows(self, batch: Sequence[int]) -> list[int]:
        """The rows of a batch that this process computes.

        A batch with fewer rows than processes leaves some without any; they compute its first row
        with weight 0 (see :meth:`shard_weight`), because every process must join the all-reduce.
        """
        return list(batch[self.rank :: self.world_size]) or [batch[0]]

    def shard_weight(self, batch: int) -> float:
        """This process's share of a batch of so many rows."""
        return len(range(self.rank, batch, self.world_size)) / batch

    def shard_pairs(self, space: LabelSpace) -> LabelSpace:
        """The pairs that this process encodes; all of them where there are too few to share out."""
        P = len(space.pairs)
        if self.world_size == 1 or self.world_size > P:
            return space
        start, stop = (P * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return dataclasses.replace(space, pairs=space.pairs[start:stop])

    def gather_rows(self, rows: Tensor, total: int) -> Tensor:
        """All ``total`` rows from every process's share of them, as :meth:`shard_pairs` cut it."""
        return all_gather(rows, total * self.rank // self.world_size, total)

    def all_reduce(self, parameters: Sequence[nn.Parameter], loss: Tensor, *, stop: bool) -> Tensor:
        """Sum gradients, in place, the loss and the requests to stop over all processes: one flat exchange.

        Returns the sums of losses and of requests, on the device; nothing waits for it.
        """
        extra = torch.stack([loss.float(), torch.full_like(loss, float(stop), dtype=torch.float32)])
        if self.world_size == 1:
            return extra
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([*(grad.flatten().float() for grad in grads), extra])
        with lost_rank_errors():
            dist.all_reduce(flat)
            *sums, extra = flat.split([*(grad.numel() for grad in grads), len(extra)])
            for grad, total in zip(grads, sums, strict=True):
                grad.copy_(total.view_as(grad))
        return extra

    def barrier(self) -> None:
        """Wait until every process has come here."""
        if self.world_size > 1:
            with lost_rank_errors():
                dist.barrier()

    def broadcast(self, text: str) -> str:
        """The main process's text, in every process."""
        if self.world_size == 1:
            return text
        box = [text]
        with lost_rank_errors():
            dist.broadcast_object_list(box, 0)
        return box[0]


SINGLE_PROCESS = DistributedContext()


def all_gather(part: Tensor, start: int, total: int) -> Tensor:
    """Rows that begin at ``start`` in one process -> all ``total`` rows in every process; differentiable."""
    whole: Tensor = AllGather.apply(part, start, total)
    return whole


class AllGather(torch.autograd.Function):
    """Forward each process fills its rows; backward it gets what all processes want of them."""

    @staticmethod
    def forward(context: Any, part: Tensor, start: int, total: int) -> Tensor:
        context.rows = slice(start, start + len(part))
        whole = part.new_zeros(total, *part.shape[1:])
        whole[context.rows] = part
        with lost_rank_errors():
            dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad.contiguous().clone()
        with lost_rank_errors():
            dist.all_reduce(grad)
        return grad[context.rows], None, None


@contextlib.contextmanager
def lost_rank_errors() -> Iterator[None]:
    """Turn a broken collective operation into one sentence."""
    try:
        yield
    except RuntimeError as error:  # torch's DistError is one
        reason = str(error).splitlines()[0].split("] ")[-1]
        raise LostProcessError(
            f"Another process of this training ended or cannot be reached ({reason}).",
            hint="Its own message says why; resume with --resume.",
        ) from None


def launched_ranks(environment: Mapping[str, str]) -> DistributedContext:
    """This process among those that ``torchrun`` started; alone if it did not.

    Empty variables count as missing. Raises UsageError if the variables do not fit together.
    """
    given = {name: environment.get(name, "").strip() for name in LAUNCH_VARIABLES}
    if given["WORLD_SIZE"] in {"", "1"}:
        return SINGLE_PROCESS
    try:
        size, rank, local = (int(given[name] or "0") for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
        beside = int(given["LOCAL_WORLD_SIZE"] or size)  # all of them, where nothing is said
        here = 0 <= rank < size and 0 <= local < beside <= size
        if not (here and given["RANK"] and given["MASTER_ADDR"] and int(given["MASTER_PORT"]) > 0):
            raise ValueError
    except ValueError:
        found = ", ".join(f"{name}={value}" for name, value in given.items())
        raise UsageError(
            f"The environment variables of torchrun do not fit together ({found}).",
            hint="Start with torchrun, or unset WORLD_SIZE to train in one process.",
        ) from None
    return DistributedContext(rank, size, local, beside)


@contextlib.contextmanager
def process_group(
    environment: Mapping[str, str], *, gpu: bool, lost: Callable[[str], None]
) -> Iterator[DistributedContext]:
    """Join the processes that ``torchrun`` started, if it did.

    Args:
        environment: with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, or without.
        gpu: whether every process takes a GPU of its own (NCCL), or all compute on the CPU (Gloo).
        lost: called, in another thread, with a sentence when a process has been silent for too long.
    """
    ranks = launched_ranks(environment)
    if ranks.world_size == 1:
        yield SINGLE_PROCESS
        return
    if gpu:
        if ranks.local_rank >= torch.cuda.device_count():
            raise EnvironmentLacksError(
                f"Process {ranks.local_rank} of this machine finds no GPU of its own: "
                f"there are {torch.cuda.device_count()}.",
                hint="Start fewer processes per machine, or use --device cpu.",
            )
        torch.cuda.set_device(ranks.local_rank)
    store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=5)))
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        store=PrefixStore("exchange", store),
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    heartbeat = Heartbeat(PrefixStore("heartbeat", store), ranks, lost)
    heartbeat.start()
    try:
        yield ranks
    finally:
        heartbeat.leave()
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


class Heartbeat(threading.Thread):
    """Sends this process's heartbeat and watches those of the others."""

    def __init__(self, store: Store, ranks: DistributedContext, lost: Callable[[str], None]) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self.store, self.ranks, self.lost = store, ranks, lost
        self.over = threading.Event()

    def run(self) -> None:
        heard: dict[int, tuple[bytes, float]] = {}  # last sign of each process, and when it was new
        beats = 0
        while not self.over.wait(HEARTBEAT_SECONDS):
            beats += 1
            now = time.monotonic()
            try:
                self.store.set(str(self.ranks.rank), str(beats))
                for other in range(self.ranks.world_size):
                    sign = self.store.get(str(other)) if self.store.check([str(other)]) else b""
                    if sign != heard.get(other, (None,))[0]:
                        heard[other] = (sign, now)
            except RuntimeError:  # the store lives in the first process or in its torchrun
                if not self.over.is_set():
                    self.lost("The rendezvous host (rank 0) is unreachable.")
                return
            silent = [r for r, (sign, at) in heard.items() if sign != b"left" and now - at > SILENCE_SECONDS]
            if silent and not self.over.is_set():
                self.lost(
                    f"Process {silent[0]} of this training has been silent for {SILENCE_SECONDS:.0f} s."
                )
                return

    def leave(self) -> None:
        """Announce that this process ended normally."""
        self.over.set()
        self.join(2 * HEARTBEAT_SECONDS)
        with contextlib.suppress(RuntimeError):
            self.store.set(str(self.ranks.rank), "left")
