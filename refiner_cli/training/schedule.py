"""What each step of a training reads, and how fast it learns: functions of the step alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from refiner_cli.config import TrainConfig
from refiner_cli.data.images import seed_of


@dataclass(frozen=True)
class Schedule:
    """The steps of a training on ``count`` images; steps and epochs count from 0."""

    config: TrainConfig
    count: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.count / self.config.batch_size)

    @property
    def total(self) -> int:
        """Steps in all."""
        every = self.config.epochs * self.steps_per_epoch
        return min(every, self.config.max_steps or every)

    def learning_rate(self, step: int) -> float:
        """Learning rate: linear warm-up, then as ``train.schedule`` says."""
        config = self.config
        warm = round(config.warmup * self.total)
        if config.schedule == "cosine":
            warm = max(1, warm)
        if step < warm:
            return config.lr * (step + 1) / warm
        if config.schedule == "step":
            return config.lr * config.step_factor ** (step // self.steps_per_epoch // config.step_epochs)
        if config.schedule == "constant":
            return config.lr
        return config.lr * (0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, self.total - warm)))

    def validates(self, step: int) -> bool:
        """Whether validation follows after ``step`` steps: between epochs, or several times within each."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if position == 0:
            return epoch % self.config.eval_every == 0
        count = min(self.config.val_per_epoch, self.steps_per_epoch)
        return position in {round(i * self.steps_per_epoch / count) for i in range(1, count)}

    def validations(self, total: int) -> int:
        """How often a training of ``total`` steps is validated: as above, and after its last step."""
        return 1 + sum(self.validates(step) for step in range(total))

    def batch_images(self, step: int) -> int:
        """Images of a step; the last of an epoch may have fewer."""
        return min(self.config.batch_size, self.count - step % self.steps_per_epoch * self.config.batch_size)

    def batches_from(self, step: int) -> Iterator[tuple[int, list[int]]]:
        """The epoch and the rows of this step and of every one after it."""
        while step < self.total:
            epoch = step // self.steps_per_epoch
            for batch in self.rest_of_epoch(step)[: self.total - step]:
                yield epoch, batch
                step += 1

    def rest_of_epoch(self, step: int) -> list[list[int]]:
        """The rows of this step and of those after it in the same epoch."""
        epoch, position = divmod(step, self.steps_per_epoch)
        chance = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        order = torch.randperm(self.count, generator=chance)
        return [part.tolist() for part in order.split(self.config.batch_size)[position:]]
