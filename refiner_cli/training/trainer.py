"""The training loop. It yields what happens; it prints nothing.

A training can end at any moment and go on as if nothing had happened: see ``core/state.py`` for why
a few numbers are the whole state. Only train and validation are read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from refiner_cli.config import TrainConfig
from refiner_cli.core.models.base import Model
from refiner_cli.core.runtime.distributed import ALONE, Ranks
from refiner_cli.core.runtime.loader import Augmented, Batch, Plain, batches, worker_error
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.data.images import AUGMENTS, Preprocess, seed_of
from refiner_cli.errors import RefinerError
from refiner_cli.evaluation.scoring import Setting, calibrate
from refiner_cli.training import nonfinite as watch
from refiner_cli.training.curves import write_curves
from refiner_cli.training.events import Event, StepDone, Stopped, Validated
from refiner_cli.training.gradient_step import MicroBatches
from refiner_cli.training.optimizer import optimizer_for, set_rate
from refiner_cli.training.run_dir import Run
from refiner_cli.training.schedule import Schedule
from refiner_cli.training.state import NotSavedError, Position, State
from refiner_cli.training.token_cache import TokenCache


class AskedToStopError(Exception):
    """Validation was asked to stop; it will be made when the training goes on."""


@dataclass
class Training:
    """One training, fresh or restored. ``run_on`` does the work.

    Under several processes every one of them holds such an object; the first alone validates and
    writes.
    """

    model: Model
    benchmark: Benchmark
    run: Run
    setting: Setting
    tell: Callable[[str], None]  # hears what changes on the way
    ranks: Ranks = ALONE
    cache: TokenCache | None = None  # filled; else images are decoded
    position: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        self.config: TrainConfig = self.run.config.train
        self.space = self.benchmark.label_space("train").training()
        self.share = self.ranks.share(self.space)
        samples = self.benchmark.samples["train"]
        self.truth = torch.from_numpy(self.space.indices([sample.pair for sample in samples]))
        self.files = list(self.benchmark.paths("train"))
        self.schedule = Schedule(self.config, len(self.files), self.run.config.seed)
        self.parameters = self.model.learned()
        self.total = self.schedule.total if self.parameters else 0
        self.optimizer = optimizer_for(self.model, self.config)
        half = self.setting.precision == torch.float16
        self.scaler = torch.amp.GradScaler(self.model.device.type, enabled=half)
        self.state = State(self.run, self.model, self.optimizer, self.scaler)
        self.pieces = MicroBatches(
            self.model, self.space, self.config, self.setting.precision, tell=self.tell,
            scale=self.scaler.scale,
            encode=lambda: self.ranks.whole(self.model.encode_pairs(self.share), self.space),
        )  # fmt: skip
        self.spent = self.waited = 0.0  # seconds since the last validation, and those of them without data
        self.saved_at = time.monotonic()

    @property
    def step(self) -> int:
        """Steps done."""
        return self.position.step

    @property
    def epoch_over(self) -> bool:
        """Whether no epoch is half done: before the first step, after an epoch, after the last step."""
        return self.step % self.schedule.steps_an_epoch == 0 or self.step == self.total

    @property
    def validation_due(self) -> bool:
        """Whether a validation belongs here: where an epoch is over, and after the last step."""
        epoch = self.step // self.schedule.steps_an_epoch
        return self.epoch_over and (epoch % self.config.val_epochs == 0 or self.step == self.total)

    def run_on(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Train to the end, or until ``stop`` says so; yield what happens.

        An error leaves a checkpoint of the last whole step behind.

        Raises:
            UsageError: another process is training in the same run.
            DatasetError: an image cannot be read.
            RefinerError: the numbers left the finite, a checkpoint could not be written, or a process
                (one that decodes, or another of this training) ended.
        """
        if not self.ranks.first:
            yield from self._run_on(stop)
            return
        with self.run.writing():
            self.run.tidy(self.step, validated=self.position.validated)
            if self.position.best:
                self.run.set_best(self.position.best)
            try:
                yield from self._run_on(stop)
            except NotSavedError:
                raise
            except RefinerError:
                if self.step and not self.run.checkpoint(self.step).exists():
                    self.save()
                raise
            except RuntimeError as error:  # in the middle of a step, perhaps: nothing to save
                raise worker_error(error) from error

    def _run_on(self, stop: Callable[[], bool]) -> Iterator[Event]:
        while True:
            if self.validation_due and not self.position.validated:
                try:
                    if self.ranks.first:
                        yield self.validate(stop)
                except AskedToStopError:
                    self.save()
                    yield Stopped(self.step)
                    return
                self.position.validated = True
            if self.step == self.total:
                return
            for batch in self.rest_of_epoch():
                done, asked = self.train_step(batch, stop)
                yield done
                if asked:
                    self.save()
                    yield Stopped(self.step)
                    return
                if self.epoch_over:
                    break
                if time.monotonic() - self.saved_at >= 60 * self.config.save_minutes:
                    self.save()
                self.asked_at = time.perf_counter()

    def rest_of_epoch(self) -> Iterator[Batch]:
        """This process's share of the batches that the current epoch still holds."""
        rows = [self.ranks.rows(batch) for batch in self.schedule.rest_of_epoch(self.step)]
        epoch = self.step // self.schedule.steps_an_epoch
        config = self.model.backbone.spec.preprocess
        self.asked_at = time.perf_counter()
        if self.cache is not None:
            return self.cache.batches(rows, epoch)
        transform: Augmented | Plain = Plain(Preprocess(config))
        if self.config.augment != "none":
            transform = Augmented(AUGMENTS[self.config.augment](config), self.run.config.seed, epoch)
        return batches(self.files, transform, rows, device=self.model.device, workers=self.setting.workers)

    def train_step(self, batch: Batch, stop: Callable[[], bool]) -> tuple[StepDone, bool]:
        """One optimizer step, and whether a process was asked to stop."""
        assert self.optimizer is not None  # noqa: S101 - total is 0 without parameters
        came = time.perf_counter()
        epoch = self.step // self.schedule.steps_an_epoch
        images, lr = self.schedule.images(self.step), self.schedule.rate(self.step)
        set_rate(self.optimizer, lr)
        self.model.train()
        truth = self.truth[batch.rows].to(self.model.device)
        seed, weight = seed_of(self.run.config.seed, self.step, 1), self.ranks.weight(images)
        mine, scores = self.pieces.backward(batch.images, truth, seed, weight=weight)
        loss, wishes = self.ranks.add_up(list(self.parameters.values()), [mine, float(stop())])
        self.scaler.unscale_(self.optimizer)
        held = [p for p in self.parameters.values() if p.grad is not None]
        norm = get_total_norm([p.grad for p in held if p.grad is not None])
        problem = None
        if math.isfinite(loss) and bool(norm.isfinite()):
            clip_grads_with_norm_(held, self.config.clip, norm)
            self.scaler.step(self.optimizer)
            self.position.skipped = 0
        else:
            files = [self.files[row] for row in batch.rows.tolist()]
            problem = watch.cause(loss, batch.images, files, scores, self.parameters)
            self.count_skip(problem, loss)
        self.scaler.update()
        self.position.step += 1
        self.position.validated = False
        now = time.perf_counter()
        seconds, waited = now - self.asked_at, came - self.asked_at
        self.spent, self.waited = self.spent + seconds, self.waited + waited
        done = StepDone(self.step, self.total, epoch, loss, lr, float(norm), images, seconds, waited, problem)
        if self.ranks.first:
            self.run.log(done.to_json())
        return done, wishes > 0

    def count_skip(self, problem: str, loss: float) -> None:
        """Let a step without finite numbers pass, unless it is one too many in a row."""
        if math.isfinite(loss) and self.scaler.is_enabled() and self.scaler.get_scale() > 1:
            return  # fp16 finds its scale this way: too large a one overflows, and is halved
        self.position.skipped += 1
        if self.position.skipped > self.config.max_skipped:
            raise RefinerError(
                f"Step {self.step + 1} is number {self.position.skipped} in a row to fail: {problem}.",
                hint="Lower train.lr or use --precision fp32.",
            )

    def validate(self, stop: Callable[[], bool]) -> Validated:
        """Choose the inference weights on validation, save, and note the best checkpoint."""
        began = time.perf_counter()

        def go_on(_done: int, _all: int) -> None:
            # Under several processes the others wait in the next step's exchange, which carries the wish.
            if self.ranks.size == 1 and stop():
                raise AskedToStopError

        calibration, metrics = calibrate(self.model, self.benchmark, self.setting, go_on)
        position = self.position
        best = position.best is None or position.best["val"]["AUC"] < metrics.AUC
        if best:
            name = self.run.checkpoint(self.step).name
            position.best = {"checkpoint": name, "step": self.step, "val": metrics.to_json()}
        position.validated = True
        waiting = self.waited / self.spent if self.spent else 0.0
        self.spent = self.waited = 0.0
        epoch = math.ceil(self.step / self.schedule.steps_an_epoch)
        seconds = time.perf_counter() - began
        done = Validated(self.step, epoch, metrics, calibration, best, seconds, waiting)
        self.run.log(done.to_json())
        self.model.calibration = calibration
        self.save(metrics.to_json())
        if best and position.best:
            self.run.set_best(position.best)
        self.run.prune()
        write_curves(self.run)
        return done

    def save(self, metrics: dict[str, Any] | None = None) -> None:
        """Write a checkpoint, where this process writes."""
        if self.ranks.first:
            # Both follow the free memory, and the last digits of a result follow them.
            self.position.images, self.position.prompts = self.pieces.size, self.model.backbone.text.chunk
            self.state.save(self.position, metrics)
            self.run.prune()
        self.saved_at = time.monotonic()

    def restore(self, folder: Path) -> None:
        """Go back to a checkpoint. Raises ModelFileError if it is damaged."""
        self.position = self.state.restore(folder)
        self.pieces.size, self.model.backbone.text.chunk = self.position.images, self.position.prompts
