"""Several processes that share the work, as torchrun starts them."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import distributed

from refiner_cli.inference.decoding import Batch

PATIENCE = dt.timedelta(days=30)  # the others may have far more to do


@dataclass(frozen=True)
class Team:
    """Which process this is, and of how many."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def mine(self, group: Batch) -> bool:
        """Whether this process computes a group: every group belongs to one process."""
        return group.number % self.world == self.rank

    def wait(self) -> None:
        """Until all have come here."""
        if self.world > 1:
            distributed.barrier()


@contextlib.contextmanager
def prediction_team(rank: int, world: int) -> Iterator[Team]:
    """Join the others; each takes a GPU of its own where there are any."""
    if world == 1:
        yield Team()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
    distributed.init_process_group("gloo", rank=rank, world_size=world, timeout=PATIENCE)
    try:
        yield Team(rank, world)
    finally:
        distributed.destroy_process_group()
