"""Validation while a model trains: of the plain model, and its loss for methods that select by it."""

from __future__ import annotations

import torch

from refiner_cli.config import TrainConfig
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.core.runtime.device import RuntimeOptions, autocast
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.evaluation.metrics.bias_sweep import Metrics
from refiner_cli.evaluation.scoring import (
    ProgressFn,
    evaluate_worlds,
    evaluation_mode,
    image_batches,
    no_progress,
)


def measure_plain(
    model: Model, benchmark: Benchmark, options: RuntimeOptions, train: TrainConfig, progress: ProgressFn
) -> tuple[Metrics, float | None]:
    """Closed-world metrics of the model without calibration, and the loss if it selects the best epoch."""
    model.calibration = Calibration()
    if not benchmark.samples["val"]:
        return Metrics.of_no_images(), None
    spaces = {"closed": benchmark.label_space("val")}
    metrics = evaluate_worlds(model, benchmark, "val", spaces, options, progress=progress)["closed"]
    by_loss = None
    if train.selection == "loss":
        by_loss = validation_loss(model, benchmark, options, train, progress)
    return metrics, by_loss


@torch.no_grad()
def validation_loss(
    model: Model,
    benchmark: Benchmark,
    options: RuntimeOptions,
    train: TrainConfig,
    progress: ProgressFn = no_progress,
) -> float:
    """The mean of the training loss over the validation images, among the pairs of its closed world."""
    samples = benchmark.samples["val"]
    space = benchmark.label_space("val")
    truth = torch.from_numpy(space.indices([sample.pair for sample in samples])).to(model.device)
    total, done = torch.zeros((), device=model.device), 0
    with evaluation_mode(model), autocast(model.device, options.precision):
        bank = model.encode_pairs(space)
        for batch in image_batches(model, benchmark, "val", options):
            scores = model.score(model.encode_images(batch.images), bank)
            loss = model.loss(scores, truth[batch.rows.to(truth.device)], space, train)
            total += loss * len(batch.rows)
            done += len(batch.rows)
            progress(done, len(samples))
    return float(total) / len(samples)
