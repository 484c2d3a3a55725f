"""The training loop. It yields what happens and prints nothing.

Training can end at any moment and resume as if nothing had happened: ``training/state.py`` says why a
few numbers are the whole state. Only the train and validation splits are read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from refiner_cli.config import TrainConfig
from refiner_cli.core.models.base import Model, TextBank
from refiner_cli.core.runtime.device import RuntimeOptions
from refiner_cli.core.runtime.distributed import SINGLE_PROCESS, DistributedContext
from refiner_cli.core.runtime.loader import (
    EvalTransform,
    ImageBatch,
    TrainTransform,
    load_batches,
    worker_error,
)
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.data.images import AUGMENTS, Preprocess, seed_of
from refiner_cli.errors import RefinerError
from refiner_cli.training.calibrate import calibrate
from refiner_cli.training.curves import write_curves
from refiner_cli.training.events import Event, StepDone, Stopped, Validated
from refiner_cli.training.gradient_step import GradientStep
from refiner_cli.training.nonfinite import diagnose_nonfinite
from refiner_cli.training.optimizer import build_optimizer, set_learning_rate
from refiner_cli.training.run_dir import Run
from refiner_cli.training.schedule import Schedule
from refiner_cli.training.state import NotSavedError, TrainerState, TrainProgress
from refiner_cli.training.token_cache import TokenCache


class StopRequestedError(Exception):
    """Validation was interrupted and will be rerun on resume."""


@dataclass
class Trainer:
    """One training, new or restored; :meth:`fit` does the work.

    Under several processes each of them holds such an object; the main one alone validates and writes.
    """

    model: Model
    benchmark: Benchmark
    run: Run
    options: RuntimeOptions
    log: Callable[[str], None]  # receives a line about every change on the way
    ranks: DistributedContext = SINGLE_PROCESS
    cache: TokenCache | None = None  # filled; else images are decoded
    progress: TrainProgress = field(default_factory=TrainProgress)

    def __post_init__(self) -> None:
        self.config: TrainConfig = self.run.config.train
        self.space = self.benchmark.label_space("train").training()
        self.share = self.ranks.shard_pairs(self.space)
        samples = self.benchmark.samples["train"]
        self.truth = torch.from_numpy(self.space.indices([sample.pair for sample in samples]))
        self.files = list(self.benchmark.paths("train"))
        self.schedule = Schedule(self.config, len(self.files), self.run.config.seed)
        self.parameters = self.model.trainable_parameters()
        self.total = self.schedule.total if self.parameters else 0
        self.optimizer = build_optimizer(self.model, self.config)
        half = self.options.precision == torch.float16
        self.scaler = torch.amp.GradScaler(self.model.device.type, enabled=half)
        self.state = TrainerState(self.run, self.model, self.optimizer, self.scaler)
        self.gradient_step = GradientStep(
            self.model, self.space, self.config, self.options.precision, log=self.log,
            scale=self.scaler.scale,
            encode=self.encode_pairs,
        )  # fmt: skip
        self.spent = self.waited = 0.0  # seconds since the last validation, and those of them without data
        self.saved_at = time.monotonic()

    @property
    def step(self) -> int:
        """Steps done."""
        return self.progress.step

    @property
    def epoch_over(self) -> bool:
        """Whether no epoch is unfinished: before the first step, after an epoch, after the last step."""
        return self.step % self.schedule.steps_per_epoch == 0 or self.step == self.total

    @property
    def validation_due(self) -> bool:
        """Whether validation belongs here: after ``eval_every`` epochs, and after the last step."""
        epoch = self.step // self.schedule.steps_per_epoch
        return self.epoch_over and (epoch % self.config.eval_every == 0 or self.step == self.total)

    def fit(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Train to the end, or until ``stop`` says so; yield what happens.

        An error leaves a checkpoint of the last whole step behind.

        Raises:
            UsageError: another process is training in the same run.
            DatasetError: an image cannot be read.
            RefinerError: too many steps were not finite, a checkpoint could not be written, or a process
                (one that decodes, or another of this training) ended.
        """
        if not self.ranks.is_main:
            yield from self._fit(stop)
            return
        with self.run.locked():
            self.run.discard_after(self.step, validated=self.progress.validated)
            if self.progress.best:
                self.run.write_best(self.progress.best)
            try:
                yield from self._fit(stop)
            except NotSavedError:
                raise
            except RefinerError:
                if self.step and not self.run.checkpoint(self.step).exists():
                    self.save()
                raise
            except RuntimeError as error:  # in the middle of a step, perhaps: nothing to save
                raise worker_error(error) from error

    def _fit(self, stop: Callable[[], bool]) -> Iterator[Event]:
        while True:
            if self.validation_due and not self.progress.validated:
                try:
                    if self.ranks.is_main:
                        yield self.validate(stop)
                except StopRequestedError:
                    self.save()
                    yield Stopped(self.step)
                    return
                self.progress.validated = True
            if self.step == self.total:
                return
            for batch in self.rest_of_epoch():
                done, stop_requested = self.train_step(batch, stop)
                yield done
                if stop_requested:
                    self.save()
                    yield Stopped(self.step)
                    return
                if self.epoch_over:
                    break
                if time.monotonic() - self.saved_at >= 60 * self.config.checkpoint_minutes:
                    self.save()
                self.asked_at = time.perf_counter()

    def rest_of_epoch(self) -> Iterator[ImageBatch]:
        """This process's share of the batches that the current epoch still holds."""
        rows = [self.ranks.shard_rows(batch) for batch in self.schedule.rest_of_epoch(self.step)]
        epoch = self.step // self.schedule.steps_per_epoch
        config = self.model.backbone.spec.preprocess
        self.asked_at = time.perf_counter()
        if self.cache is not None:
            return self.cache.batches(rows, epoch)
        transform: TrainTransform | EvalTransform = EvalTransform(Preprocess(config))
        if self.config.augment != "none":
            transform = TrainTransform(AUGMENTS[self.config.augment](config), self.run.config.seed, epoch)
        return load_batches(
            self.files, transform, rows, device=self.model.device, workers=self.options.num_workers
        )

    def encode_pairs(self) -> TextBank:
        """The text vectors of all training pairs, of which this process encodes its share."""
        bank = self.model.encode_pairs(self.share)
        if bank.space is self.space:
            return bank
        return replace(
            bank, space=self.space, pairs=self.ranks.gather_rows(bank.pairs, len(self.space.pairs))
        )

    def train_step(self, batch: ImageBatch, stop: Callable[[], bool]) -> tuple[StepDone, bool]:
        """One optimizer step, and whether any process was asked to stop."""
        assert self.optimizer is not None  # noqa: S101 - total is 0 without parameters
        came = time.perf_counter()
        epoch = self.step // self.schedule.steps_per_epoch
        images, lr = self.schedule.batch_images(self.step), self.schedule.learning_rate(self.step)
        set_learning_rate(self.optimizer, lr)
        self.model.train()
        truth = self.truth[batch.rows].to(self.model.device)
        seed, weight = seed_of(self.run.config.seed, self.step, 1), self.ranks.shard_weight(images)
        own_loss, scores = self.gradient_step.backward(batch.images, truth, seed, weight=weight)
        loss, stop_requests = self.ranks.all_reduce(list(self.parameters.values()), [own_loss, float(stop())])
        self.scaler.unscale_(self.optimizer)
        held = [p for p in self.parameters.values() if p.grad is not None]
        norm = get_total_norm([p.grad for p in held if p.grad is not None])
        problem = None
        if math.isfinite(loss) and bool(norm.isfinite()):
            clip_grads_with_norm_(held, self.config.max_grad_norm, norm)
            self.scaler.step(self.optimizer)
            self.progress.nonfinite_steps = 0
        else:
            files = [self.files[row] for row in batch.rows.tolist()]
            problem = diagnose_nonfinite(loss, batch.images, files, scores, self.parameters)
            self.count_nonfinite(problem, loss)
        self.scaler.update()
        self.progress.step += 1
        self.progress.validated = False
        now = time.perf_counter()
        seconds, waited = now - self.asked_at, came - self.asked_at
        self.spent, self.waited = self.spent + seconds, self.waited + waited
        done = StepDone(self.step, self.total, epoch, loss, lr, float(norm), images, seconds, waited, problem)
        if self.ranks.is_main:
            self.run.append_metrics(done.to_json())
        return done, stop_requests > 0

    def count_nonfinite(self, problem: str, loss: float) -> None:
        """Count a non-finite step. Raises RefinerError if there were too many in a row."""
        if math.isfinite(loss) and self.scaler.is_enabled() and self.scaler.get_scale() > 1:
            return  # fp16 finds its scale this way: too large a one overflows, and is halved
        self.progress.nonfinite_steps += 1
        if self.progress.nonfinite_steps > self.config.max_nonfinite_steps:
            raise RefinerError(
                f"{self.progress.nonfinite_steps} consecutive steps were non-finite; "
                f"last: step {self.step + 1}, {problem}.",
                hint="Lower train.lr or use --precision fp32.",
            )

    def validate(self, stop: Callable[[], bool]) -> Validated:
        """Calibrate on validation, save, and record the best checkpoint."""
        began = time.perf_counter()

        def check_stop(_done: int, _all: int) -> None:
            # Under several processes the others wait in the next all-reduce, which carries the request.
            if self.ranks.world_size == 1 and stop():
                raise StopRequestedError

        calibration, metrics = calibrate(self.model, self.benchmark, self.options, check_stop)
        progress = self.progress
        metric, value = metrics.selection_metric()
        best = progress.best is None or progress.best["val"][metric] < value
        if best:
            name = self.run.checkpoint(self.step).name
            progress.best = {"checkpoint": name, "step": self.step, "val": metrics.to_json()}
        progress.validated = True
        waiting = self.waited / self.spent if self.spent else 0.0
        self.spent = self.waited = 0.0
        epoch = math.ceil(self.step / self.schedule.steps_per_epoch)
        seconds = time.perf_counter() - began
        done = Validated(self.step, epoch, metrics, calibration, best, seconds, waiting)
        self.run.append_metrics(done.to_json())
        self.model.calibration = calibration
        self.save(metrics.to_json())
        if best and progress.best:
            self.run.write_best(progress.best)
        self.run.prune()
        write_curves(self.run)
        return done

    def save(self, metrics: dict[str, Any] | None = None) -> None:
        """Write a checkpoint, in the main process."""
        if self.ranks.is_main:
            # Both depend on the free memory, and the last digits of a result depend on them.
            self.progress.micro_batch = self.gradient_step.micro_batch
            self.progress.text_chunk_size = self.model.memory.text_chunk_size
            self.state.save(self.progress, metrics)
            self.run.prune()
        self.saved_at = time.monotonic()

    def restore(self, folder: Path) -> None:
        """Return to a checkpoint. Raises ModelFileError if it is damaged."""
        self.progress = self.state.restore(folder)
        self.gradient_step.micro_batch = self.progress.micro_batch
        self.model.memory = replace(self.model.memory, text_chunk_size=self.progress.text_chunk_size)
