"""The processes of one training: who computes which rows, and the sums they share.

Every process holds the whole model. Of each batch a process takes its share of the rows and of the
pairs to encode; one flat all-reduce a step then adds up the gradients of all trainable parameters,
the loss and the wish to stop, so that all processes stay equal and stop together. With one process
nothing is exchanged.

A process that ends breaks the others' connections, which Gloo notices at once. One that hangs, or
whose machine is gone, is noticed by its silence: every process says every few seconds that it lives.
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

from refiner_cli.core.models.base import TextBank
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import EnvironmentLacksError, RefinerError

BEAT = 3.0  # seconds between signs of life
PATIENCE = 30.0  # seconds of silence after which a process counts as gone
LONGEST = timedelta(hours=12)  # of one exchange: the others wait while the first process validates


class LostProcessError(RefinerError):
    """Another process of the training is gone."""


@dataclass(frozen=True)
class Ranks:
    """This process among all of one training."""

    rank: int = 0
    size: int = 1
    local: int = 0  # number on this machine: which GPU it takes

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and validates."""
        return self.rank == 0

    def rows(self, batch: Sequence[int]) -> list[int]:
        """The rows of a batch that this process computes.

        A batch with fewer rows than processes leaves some without any; they compute its first row
        with weight 0 (see :meth:`weight`), for the exchange needs everyone.
        """
        return list(batch[self.rank :: self.size]) or [batch[0]]

    def weight(self, batch: int) -> float:
        """This process's share of a batch of so many rows."""
        return len(range(self.rank, batch, self.size)) / batch

    def share(self, space: LabelSpace) -> LabelSpace:
        """The pairs that this process encodes; all of them where there are too few to share out."""
        P = len(space.pairs)
        if self.size == 1 or self.size > P:
            return space
        start, stop = (P * rank // self.size for rank in (self.rank, self.rank + 1))
        return dataclasses.replace(space, pairs=space.pairs[start:stop])

    def whole(self, bank: TextBank, space: LabelSpace) -> TextBank:
        """The bank of ``space`` from every process's bank of its share."""
        P = len(space.pairs)
        if bank.space is space:
            return bank
        return dataclasses.replace(bank, space=space, pairs=gather(bank.pairs, P * self.rank // self.size, P))

    def add_up(self, parameters: Sequence[nn.Parameter], numbers: Sequence[float]) -> list[float]:
        """Sum gradients, in place, and a few numbers over all processes: one flat exchange."""
        if self.size == 1:
            return list(numbers)
        grads = [p.grad for p in parameters if p.grad is not None]
        device = parameters[0].device
        extra = torch.tensor(numbers, dtype=torch.float32, device=device)
        flat = torch.cat([*(grad.flatten().float() for grad in grads), extra])
        with naming_the_lost():
            dist.all_reduce(flat)
            *sums, extra = flat.split([*(grad.numel() for grad in grads), len(numbers)])
            for grad, total in zip(grads, sums, strict=True):
                grad.copy_(total.view_as(grad))
            return [float(number) for number in extra.tolist()]

    def wait(self) -> None:
        """Go on when every process has come here."""
        if self.size > 1:
            with naming_the_lost():
                dist.barrier()

    def agree(self, text: str) -> str:
        """The first process's text, on every process."""
        if self.size == 1:
            return text
        box = torch.zeros(4096, dtype=torch.uint8)
        raw = text.encode()
        box[: len(raw)] = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        device = torch.device("cuda", self.local) if dist.get_backend() == "nccl" else torch.device("cpu")
        box = box.to(device)
        with naming_the_lost():
            dist.broadcast(box, 0)
        return bytes(box.tolist()).rstrip(b"\0").decode()


ALONE = Ranks()


def gather(part: Tensor, start: int, total: int) -> Tensor:
    """Rows that begin at ``start`` in one process -> all ``total`` rows in every process; differentiable."""
    whole: Tensor = Gather.apply(part, start, total)
    return whole


class Gather(torch.autograd.Function):
    """Forward each process fills its rows; backward it gets what all processes want of them."""

    @staticmethod
    def forward(context: Any, part: Tensor, start: int, total: int) -> Tensor:
        context.rows = slice(start, start + len(part))
        whole = part.new_zeros(total, *part.shape[1:])
        whole[context.rows] = part
        with naming_the_lost():
            dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad.contiguous().clone()
        with naming_the_lost():
            dist.all_reduce(grad)
        return grad[context.rows], None, None


@contextlib.contextmanager
def naming_the_lost() -> Iterator[None]:
    """Turn a broken exchange into one sentence."""
    try:
        yield
    except RuntimeError as error:  # torch's DistError is one
        reason = str(error).splitlines()[0].split("] ")[-1]
        raise LostProcessError(
            f"Another process of this training ended or cannot be reached ({reason}).",
            hint="Its own message says why; go on with --resume.",
        ) from None


@contextlib.contextmanager
def joined(environment: Mapping[str, str], *, gpu: bool, lost: Callable[[str], None]) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, if it did.

    Args:
        environment: with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, or without.
        gpu: whether every process takes a GPU of its own (NCCL), or all compute on the CPU (Gloo).
        lost: called, in another thread, with a sentence when a process has been silent for too long.
    """
    size = int(environment.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    ranks = Ranks(int(environment["RANK"]), size, int(environment.get("LOCAL_RANK", "0")))
    if gpu:
        if ranks.local >= torch.cuda.device_count():
            raise EnvironmentLacksError(
                f"Process {ranks.local} of this machine finds no GPU of its own: "
                f"there are {torch.cuda.device_count()}.",
                hint="Start fewer processes a machine, or use --device cpu.",
            )
        torch.cuda.set_device(ranks.local)
    store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=5)))
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        store=PrefixStore("exchange", store),
        rank=ranks.rank,
        world_size=size,
        timeout=LONGEST,
    )
    pulse = Pulse(PrefixStore("pulse", store), ranks, lost)
    pulse.start()
    try:
        yield ranks
    finally:
        pulse.leave()
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


class Pulse(threading.Thread):
    """Says that this process lives, and listens to the others."""

    def __init__(self, store: Store, ranks: Ranks, lost: Callable[[str], None]) -> None:
        super().__init__(daemon=True, name="pulse")
        self.store, self.ranks, self.lost = store, ranks, lost
        self.over = threading.Event()

    def run(self) -> None:
        heard: dict[int, tuple[bytes, float]] = {}  # last sign of each process, and when it was new
        beats = 0
        while not self.over.wait(BEAT):
            beats += 1
            now = time.monotonic()
            try:
                self.store.set(str(self.ranks.rank), str(beats))
                for other in range(self.ranks.size):
                    sign = self.store.get(str(other)) if self.store.check([str(other)]) else b""
                    if sign != heard.get(other, (None,))[0]:
                        heard[other] = (sign, now)
            except RuntimeError:  # the store lives in the first process or in its torchrun
                if not self.over.is_set():
                    self.lost("The process that the others of this training meet at is gone.")
                return
            silent = [r for r, (sign, at) in heard.items() if sign != b"left" and now - at > PATIENCE]
            if silent and not self.over.is_set():
                self.lost(f"Process {silent[0]} of this training has been silent for {PATIENCE:.0f} s.")
                return

    def leave(self) -> None:
        """Say that this process ended as it should."""
        self.over.set()
        self.join(2 * BEAT)
        with contextlib.suppress(RuntimeError):
            self.store.set(str(self.ranks.rank), "left")
