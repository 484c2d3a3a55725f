"""The loss on the validation split, for the methods that select their best epoch by it."""

from __future__ import annotations

import torch

from refiner_cli.config import TrainConfig
from refiner_cli.core.models.base import Model
from refiner_cli.core.runtime.device import RuntimeOptions, autocast
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.evaluation.scoring import ProgressFn, evaluation_mode, image_batches, no_progress


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
