"""One optimizer step over all processes: gradients, their sum, clipping, and what is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from refiner_cli.config import Config
from refiner_cli.core.models.base import Model, TextBank
from refiner_cli.core.runtime.device import to_device
from refiner_cli.core.runtime.distributed import DistributedContext
from refiner_cli.core.runtime.loader import ImageBatch
from refiner_cli.core.runtime.log import LogFn
from refiner_cli.data.images import seed_of
from refiner_cli.data.labels import LabelSpace
from refiner_cli.training.gradient_step import GradientStep
from refiner_cli.training.nonfinite import diagnose_nonfinite
from refiner_cli.training.optimizer import build_optimizer, set_learning_rate
from refiner_cli.training.schedule import Schedule


@dataclass(frozen=True)
class StepOutcome:
    """What a step computed, the same in every process but for ``problem``."""

    loss: float
    lr: float
    norm: float  # of the gradient, before clipping
    problem: str | None  # what was not finite, in words; the parameters are unchanged then
    overflow: bool  # whether the problem is only that the loss scale of fp16 is still too large
    stop_requested: bool  # by any process


class OptimizerStep:
    """Changes the model by one batch at a time.

    Args:
        space: the pairs of the loss.
        truth: ``N`` int64, the pair of each training image.
        files: ``N`` paths, to name an image.
        ranks: the processes that share each batch.
        log: receives a line when the micro-batch becomes smaller.
    """

    def __init__(
        self,
        model: Model,
        space: LabelSpace,
        truth: torch.Tensor,
        files: list[Path],
        schedule: Schedule,
        config: Config,
        precision: torch.dtype,
        ranks: DistributedContext,
        log: LogFn,
    ) -> None:
        self.model, self.space, self.truth, self.files = model, space, truth, files
        self.schedule, self.config, self.ranks = schedule, config, ranks
        self.shard = ranks.shard_pairs(space)
        self.parameters = model.trainable_parameters()
        self.optimizer = build_optimizer(model, config.train)
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=precision == torch.float16)
        self.gradient_step = GradientStep(
            model, space, config.train, precision, log=log,
            scale=self.scaler.scale,
            encode=self.encode_pairs,
        )  # fmt: skip

    def encode_pairs(self) -> TextBank:
        """The text vectors of all training pairs, of which this process encodes its share."""
        bank = self.model.encode_pairs(self.shard)
        if bank.space is self.space:
            return bank
        return replace(
            bank, space=self.space, pairs=self.ranks.gather_rows(bank.pairs, len(self.space.pairs))
        )

    def run(self, batch: ImageBatch, step: int, stop: Callable[[], bool]) -> StepOutcome:
        """Compute the gradients of a batch and change the parameters, unless something is not finite.

        Args:
            batch: this process's rows of the batch of ``step``, which counts from 0.
            stop: asked once; the answers of all processes are added up with the gradients.
        """
        assert self.optimizer is not None  # noqa: S101 - a model without parameters has no steps
        images, lr = self.schedule.batch_images(step), self.schedule.learning_rate(step)
        set_learning_rate(self.optimizer, lr)
        self.model.train()
        truth = to_device(self.truth[batch.rows], self.model.device)
        seed, weight = seed_of(self.config.seed, step, 1), self.ranks.shard_weight(images)
        own_loss, scores = self.gradient_step.backward(batch.images, truth, seed, weight=weight)
        sums = self.ranks.all_reduce(list(self.parameters.values()), own_loss, stop=stop())
        self.scaler.unscale_(self.optimizer)
        held = [p for p in self.parameters.values() if p.grad is not None]
        total = get_total_norm([p.grad for p in held if p.grad is not None])
        # The step's one wait for the device.
        loss, stop_requests, norm = torch.cat([sums, total.float().reshape(1)]).tolist()
        problem = None
        if math.isfinite(loss) and math.isfinite(norm):
            if self.config.train.max_grad_norm:
                clip_grads_with_norm_(held, self.config.train.max_grad_norm, total)
            self.scaler.step(self.optimizer)
        else:
            files = [self.files[row] for row in batch.rows.tolist()]
            problem = diagnose_nonfinite(loss, batch.images, files, scores, self.parameters)
        # fp16 finds its scale this way: too large a one overflows, and is halved.
        overflow = problem is not None and math.isfinite(loss) and self.scaler.is_enabled()
        overflow = overflow and self.scaler.get_scale() > 1
        self.scaler.update()
        return StepOutcome(loss, lr, norm, problem, overflow, stop_requests > 0)
