"""The training loop. It yields what happens and prints nothing.

Training can end at any moment and resume as if nothing had happened: ``training/state.py`` says why a
few numbers are the whole state. Only the train and validation splits are read.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from refiner_cli.config import TrainConfig
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.core.runtime.device import RuntimeOptions
from refiner_cli.core.runtime.distributed import SINGLE_PROCESS, DistributedContext
from refiner_cli.core.runtime.loader import (
    EvalTransform,
    ImageBatch,
    TrainTransform,
    load_batches,
    worker_error,
)
from refiner_cli.core.runtime.log import LogFn
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.data.images import AUGMENTS, Preprocess
from refiner_cli.errors import RefinerError, ScoresError
from refiner_cli.evaluation.scoring import ProgressFn, no_progress
from refiner_cli.inference.encoded import EncodedBenchmark
from refiner_cli.training.calibration_stage import CalibrationStage, FoldModels, no_folds
from refiner_cli.training.curves import write_curves
from refiner_cli.training.events import CalibrationDone, Event, StepDone, Stopped, Validated
from refiner_cli.training.nonfinite import check_nonfinite_steps, validation_error
from refiner_cli.training.optimizer_step import OptimizerStep
from refiner_cli.training.run_dir import Run
from refiner_cli.training.schedule import Schedule
from refiner_cli.training.selection import best_record, is_better
from refiner_cli.training.state import NotSavedError, TrainerState, TrainProgress, restore_sizes
from refiner_cli.training.token_cache import TokenCache
from refiner_cli.training.validation_loss import measure_plain


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
    log: LogFn  # receives a line about every change on the way
    ranks: DistributedContext = SINGLE_PROCESS
    cache: TokenCache | None = None  # filled; else images are decoded
    progress: TrainProgress = field(default_factory=TrainProgress)
    folds: FoldModels = no_folds  # of a cross-validation, where there are no validation images
    watch: ProgressFn = no_progress  # called while it validates and calibrates, with how much is done

    def __post_init__(self) -> None:
        self.config: TrainConfig = self.run.config.train
        space = self.benchmark.label_space("train").training()
        truth = torch.from_numpy(space.indices([sample.pair for sample in self.benchmark.samples["train"]]))
        self.files = list(self.benchmark.paths("train"))
        self.schedule = Schedule(self.config, len(self.files), self.run.config.seed)
        self.optimizer_step = OptimizerStep(
            self.model, space, truth, self.files, self.schedule, self.run.config, self.options.precision,
            self.ranks, self.log,
        )  # fmt: skip
        self.total = self.schedule.total if self.optimizer_step.parameters else 0
        self.state = TrainerState(
            self.run, self.model, self.optimizer_step.optimizer, self.optimizer_step.scaler
        )
        self.spent = self.waited = 0.0  # seconds since the last validation, and those of them without data
        self.saved_at = time.monotonic()
        self.decoded: Iterator[ImageBatch] | None = None  # the batches to come, once decoding has begun

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
        """Whether validation belongs here: where the schedule says so, and after the last step."""
        return self.step == self.total or self.schedule.validates(self.step)

    def fit(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Train to the end, or until ``stop`` says so; yield what happens.

        An error leaves a checkpoint of the last completed step behind.

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
            self.run.write_best(self.progress.best)
            if self.step < self.total:
                self.run.forget_calibration()
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
                yield from [self.calibrate(stop)] if self.ranks.is_main else []
                return
            for batch in self.rest_of_epoch():
                done, stop_requested = self.train_step(batch, stop)
                yield done
                if stop_requested:
                    self.save()
                    yield Stopped(self.step)
                    return
                if self.epoch_over or self.validation_due:
                    break
                if time.monotonic() - self.saved_at >= 60 * self.config.checkpoint_minutes:
                    self.save()
                self.requested_at = time.perf_counter()

    def rest_of_epoch(self) -> Iterator[ImageBatch]:
        """This process's share of the batches that the current epoch still holds."""
        rest = self.schedule.rest_of_epoch(self.step)
        self.requested_at = time.perf_counter()  # when the next batch was requested
        if self.cache is not None:
            epoch = self.step // self.schedule.steps_per_epoch
            return self.cache.batches([self.ranks.shard_rows(batch) for batch in rest], epoch)
        if isinstance(self.benchmark, EncodedBenchmark):
            rows = [self.ranks.shard_rows(batch) for batch in rest]
            return self.benchmark.batches("train", rows, self.model.device)
        if self.decoded is None:
            self.decoded = self.decoded_batches()
        return islice(self.decoded, len(rest))

    def decoded_batches(self) -> Iterator[ImageBatch]:
        """This process's batches from now to the end; the processes that decode stay for all epochs."""
        config, count = self.model.backbone.spec.preprocess, len(self.files)
        keys = (
            [epoch * count + row for row in self.ranks.shard_rows(batch)]
            for epoch, batch in self.schedule.batches_from(self.step)
        )
        transform: TrainTransform | EvalTransform = EvalTransform(Preprocess(config))
        if self.config.augment != "none":
            transform = TrainTransform(AUGMENTS[self.config.augment](config), self.run.config.seed)
        return load_batches(
            self.files, transform, keys, device=self.model.device, workers=self.options.num_workers
        )

    def train_step(self, batch: ImageBatch, stop: Callable[[], bool]) -> tuple[StepDone, bool]:
        """One optimizer step, and whether any process was asked to stop.

        Raises RefinerError if too many steps in a row were not finite.
        """
        arrived = time.perf_counter()
        epoch, images = self.step // self.schedule.steps_per_epoch, self.schedule.batch_images(self.step)
        outcome = self.optimizer_step.run(batch, self.step, stop)
        if outcome.problem is None:
            self.progress.nonfinite_steps = 0
        elif not outcome.overflow:
            self.progress.nonfinite_steps += 1
            check_nonfinite_steps(
                self.progress.nonfinite_steps, self.config.max_nonfinite_steps, self.step + 1, outcome.problem
            )
        self.progress.step += 1
        self.progress.validated, self.progress.validation = False, None
        now = time.perf_counter()
        seconds, waited = now - self.requested_at, arrived - self.requested_at
        self.spent, self.waited = self.spent + seconds, self.waited + waited
        done = StepDone(self.step, self.total, epoch, outcome.loss, outcome.lr, outcome.norm, images, seconds,
                        waited, outcome.problem)  # fmt: skip
        if self.ranks.is_main:
            self.run.append_metrics(done.to_json())
        return done, outcome.stop_requested

    def stop_check(self, stop: Callable[[], bool]) -> ProgressFn:
        """A progress function that raises StopRequestedError once ``stop`` says so."""

        def check(done: int, total: int) -> None:
            self.watch(done, total)
            # Under several processes the others wait in the next all-reduce, which carries the request.
            if self.ranks.world_size == 1 and stop():
                raise StopRequestedError

        return check

    def validate(self, stop: Callable[[], bool]) -> Validated:
        """Measure the plain model on validation, save, and record the best checkpoint."""
        began = time.perf_counter()
        try:
            metrics, by_loss = measure_plain(self.model, self.benchmark, self.options, self.config,
                                             self.stop_check(stop))  # fmt: skip
        except ScoresError as error:
            raise validation_error(self.step, error, self.optimizer_step.parameters) from None
        progress, name = self.progress, self.run.checkpoint(self.step).name
        record = best_record(name, self.step, metrics.to_json(), self.recent_loss(), validation_loss=by_loss)
        progress.validation, best = record, is_better(record, progress.best)
        if best:
            progress.best = record
        progress.validated = True
        waiting = self.waited / self.spent if self.spent else 0.0
        self.spent = self.waited = 0.0
        epoch = math.ceil(self.step / self.schedule.steps_per_epoch)
        seconds = time.perf_counter() - began
        done = Validated(self.step, epoch, metrics, best, record["criterion"], seconds, waiting, self.total)
        self.run.append_metrics(done.to_json())
        self.model.calibration = Calibration(bias=metrics.bias or 0.0)
        self.write_checkpoint(metrics.to_json())
        self.run.write_best(progress.best)
        self.prune()
        write_curves(self.run)
        return done

    def calibrate(self, stop: Callable[[], bool]) -> CalibrationDone | Stopped:
        """Calibrate the best checkpoint, unless an earlier process did."""
        try:
            stage = CalibrationStage(self.run, self.model, self.benchmark, self.options, self.folds)
            return stage.complete(self.stop_check(stop))
        except StopRequestedError:
            return Stopped(self.step)

    def recent_loss(self) -> float | None:
        """The mean training loss since the last validation; None if there was no finite step."""
        losses: list[float] = []
        for row in self.run.metrics():
            if row["kind"] == "val":
                losses.clear()
            elif row.get("loss") is not None:
                losses.append(row["loss"])
        return statistics.fmean(losses) if losses else None

    def save(self) -> None:
        """Write a checkpoint, in the main process."""
        if self.ranks.is_main:
            self.write_checkpoint()
            self.prune()
        self.saved_at = time.monotonic()

    def write_checkpoint(self, metrics: dict[str, Any] | None = None) -> None:
        # Both depend on the free memory, and the last digits of a result depend on them.
        self.progress.micro_batch = self.optimizer_step.gradient_step.micro_batch
        self.progress.text_chunk_size = self.model.memory.text_chunk_size
        self.state.save(self.progress, metrics)
        self.saved_at = time.monotonic()

    def prune(self) -> None:
        """Remove checkpoints that are neither the best nor among the last."""
        best = self.progress.best
        self.run.stored.prune(best["checkpoint"] if best else None)

    def restore(self) -> None:
        """Return to the newest undamaged checkpoint, if there is any.

        Raises ModelFileError if there are checkpoints and all are damaged.
        """
        progress = self.state.restore_newest(self.log)
        if progress is not None:
            self.progress = progress
            share = len(self.ranks.shard_rows(range(self.config.batch_size)))
            restore_sizes(self.optimizer_step.gradient_step, progress, share)
