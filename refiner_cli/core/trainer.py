"""The training loop and its exact state. It yields what happens; it prints nothing.

Every random number of a step is a function of (seed, step) and the order of the data one of
(seed, epoch), so a resumed training needs no generator states: parameters, optimizer and the
number of the step are the whole state. Only train and validation are read.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from refiner_cli.config import TrainConfig
from refiner_cli.core.batches import Augmented, Batch, Plain, batches
from refiner_cli.core.cache import TokenCache
from refiner_cli.core.checkpoint import ModelInfo, put_learned, read_tensors, write_model
from refiner_cli.core.microbatch import MicroBatches
from refiner_cli.core.model import Calibration, Model
from refiner_cli.core.run import Run
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.data.images import Augment, Preprocess, seed_of
from refiner_cli.errors import ModelFileError, RefinerError
from refiner_cli.evaluation.evaluate import Setting, calibrate
from refiner_cli.evaluation.sweep import Metrics

STATE, OPTIMIZER = "training.json", "training.safetensors"


@dataclass(frozen=True)
class StepDone:
    step: int  # steps done, from 1
    total: int
    epoch: int  # from 0
    loss: float
    lr: float
    images: int  # of this step
    seconds: float
    waited: float  # seconds of it that went into waiting for data


@dataclass(frozen=True)
class Validated:
    step: int
    epoch: int  # epochs done
    metrics: Metrics
    calibration: Calibration
    best: bool
    seconds: float


@dataclass(frozen=True)
class Stopped:
    """Asked to stop; the state is saved."""

    step: int


Event = StepDone | Validated | Stopped


@dataclass
class Training:
    """One training, fresh or resumed. ``run_on`` does the work."""

    model: Model
    benchmark: Benchmark
    run: Run
    setting: Setting
    tell: Callable[[str], None]  # hears what changes on the way
    step: int = 0  # steps done
    cache: TokenCache | None = None  # filled; else images are decoded

    def __post_init__(self) -> None:
        self.config: TrainConfig = self.run.config.train
        self.seed = self.run.config.seed
        self.space = self.benchmark.label_space("train").training()
        samples = self.benchmark.samples["train"]
        self.truth = torch.from_numpy(self.space.indices([sample.pair for sample in samples]))
        self.files = list(self.benchmark.paths("train"))
        self.steps_an_epoch = math.ceil(len(self.files) / self.config.batch)
        all_steps = self.config.epochs * self.steps_an_epoch
        self.total = min(all_steps, self.config.max_steps or all_steps) if self.model.learned() else 0
        self.best_auc = -1.0
        parameters = self.model.learned()
        self.optimizer = (
            torch.optim.AdamW(
                [
                    {
                        "params": [p for p in parameters.values() if p.ndim >= 2],
                        "weight_decay": self.config.weight_decay,
                    },
                    {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
                ]
            )
            if parameters
            else None
        )
        self.scaler = torch.amp.GradScaler(
            self.model.device.type, enabled=self.setting.precision == torch.float16
        )

        self.pieces = MicroBatches(
            self.model,
            self.space,
            self.config,
            self.setting.precision,
            encode=lambda: self.model.encode_pairs(self.space),
            scale=self.scaler.scale,
            tell=self.tell,
        )

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine to zero."""
        warm = max(1, round(self.config.warmup * self.total))
        if step < warm:
            return self.config.lr * (step + 1) / warm
        return self.config.lr * (0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, self.total - warm)))

    def run_on(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Train to the end, or until ``stop`` says so after a step; yield what happens."""
        if self.step == 0:
            yield self.validate()
        while self.step < self.total:
            for batch in self.epoch_batches():
                yield self.train_step(batch)
                at_end = self.step % self.steps_an_epoch == 0 or self.step == self.total
                if at_end:
                    yield self.validate()
                if stop() and self.step < self.total:
                    if not at_end:
                        self.save(self.model.calibration, {})
                    yield Stopped(self.step)
                    return
                if at_end:
                    break

    def epoch_batches(self) -> Iterator[Batch]:
        """What is left of the current epoch."""
        epoch, position = divmod(self.step, self.steps_an_epoch)
        order = torch.randperm(
            len(self.files), generator=torch.Generator().manual_seed(seed_of(self.seed, epoch))
        )
        rows = [part.tolist() for part in order.split(self.config.batch)][position:]
        if self.cache is not None:
            self.asked = time.perf_counter()
            return self.cache.batches(rows, epoch)
        preprocess = self.model.backbone.spec.preprocess
        transform = (
            Augmented(Augment(preprocess), self.seed, epoch)
            if self.config.augment
            else Plain(Preprocess(preprocess))
        )
        self.asked = time.perf_counter()
        return batches(self.files, transform, rows, device=self.model.device, workers=self.setting.workers)

    def train_step(self, batch: Batch) -> StepDone:
        """One optimizer step."""
        assert self.optimizer is not None  # noqa: S101 - total is 0 without parameters
        began = time.perf_counter()
        lr = self.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        truth = self.truth[batch.rows].to(self.model.device)
        value, _ = self.pieces.backward(batch.images, truth, seed_of(self.seed, self.step, 1))
        if not math.isfinite(value):
            raise RefinerError(
                f"The loss of step {self.step + 1} is {value}.",
                hint="Lower train.lr or use --precision fp32.",
            )
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.learned().values(), self.config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        epoch = self.step // self.steps_an_epoch
        self.step += 1
        now = time.perf_counter()
        done = StepDone(
            self.step, self.total, epoch, value, lr, len(truth), now - self.asked, began - self.asked
        )
        self.asked = now
        self.run.log({"kind": "step", "step": done.step, "epoch": epoch, "loss": value, "lr": lr,
                      "seconds": round(done.seconds, 4), "waited": round(done.waited, 4)})  # fmt: skip
        return done

    def validate(self) -> Validated:
        """Choose the inference weights on validation, save, and note the best checkpoint."""
        began = time.perf_counter()
        calibration, metrics = calibrate(self.model, self.benchmark, self.setting)
        self.model.calibration = calibration
        best = self.best_auc < metrics.AUC
        self.best_auc = max(self.best_auc, metrics.AUC)
        epoch = math.ceil(self.step / self.steps_an_epoch)
        self.run.log(
            {"kind": "val", "step": self.step, "epoch": epoch, **metrics.to_json(), **calibration.to_json()}
        )
        self.save(calibration, metrics.to_json())
        if best:
            self.run.set_best(self.step, metrics.to_json())
        self.run.prune()
        return Validated(self.step, epoch, metrics, calibration, best, time.perf_counter() - began)

    def save(self, calibration: Calibration, metrics: dict[str, Any]) -> None:
        """Write a checkpoint: a model directory, and what it takes to go on."""
        self.model.calibration = calibration
        data = self.run.dataset
        info = ModelInfo(self.run.config.method, data.name, data.path, data.fingerprint, self.step, metrics)
        with self.run.new_checkpoint(self.step) as folder:
            write_model(folder, self.model, info, with_backbone=False)
            save_file(optimizer_tensors(self.optimizer), folder / OPTIMIZER)
            state = {"step": self.step, "best_auc": self.best_auc, "scaler": self.scaler.state_dict()}
            (folder / STATE).write_text(json.dumps(state, indent=2) + "\n", "utf-8")

    def restore(self, folder: Path) -> None:
        """Go back to a checkpoint. Raises ModelFileError if it is damaged."""
        learned = {
            n.removeprefix("learned."): v for n, v in read_tensors(folder).items() if n.startswith("learned.")
        }
        put_learned(self.model, learned, folder)
        try:
            state = json.loads((folder / STATE).read_text("utf-8"))
            tensors = load_file(folder / OPTIMIZER)
        except Exception as error:  # noqa: BLE001 - safetensors, JSON and the system all have their own
            raise ModelFileError(f"The training state in {folder} cannot be read ({error}).") from None
        if self.optimizer is not None:
            put_optimizer_tensors(self.optimizer, tensors)
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.best_auc = state["step"], state["best_auc"]
        self.run.forget_after(self.step)


def optimizer_tensors(optimizer: torch.optim.Optimizer | None) -> dict[str, torch.Tensor]:
    """The state of every parameter, as ``<number>.<name>``."""
    if optimizer is None:
        return {}
    return {
        f"{number}.{name}": value.detach().cpu().clone()
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def put_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Load what :func:`optimizer_tensors` gave."""
    content = optimizer.state_dict()
    content["state"] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        content["state"].setdefault(int(number), {})[name] = value
    optimizer.load_state_dict(content)
