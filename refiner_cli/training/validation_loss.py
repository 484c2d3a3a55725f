"""Validation while a model trains: of the plain model, and its loss for methods that select by it."""

from __future__ import annotations

import torch

from refiner_cli.config import TrainConfig
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.core.runtime.device import RuntimeOptions, autocast, to_device
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.evaluation.metrics.bias_sweep import Metrics, sweep
from refiner_cli.evaluation.scoring import ProgressFn, WorldScorer, evaluation_mode, image_batches


@torch.no_grad()
def measure_plain(
    model: Model, benchmark: Benchmark, options: RuntimeOptions, train: TrainConfig, progress: ProgressFn
) -> tuple[Metrics, float | None]:
    """Closed-world metrics of the model without calibration, and the loss if it selects the best epoch.

    The loss is the mean of the training loss over the validation images, among the pairs of that world.
    """
    model.calibration = Calibration()
    samples = benchmark.samples["val"]
    if not samples:
        return Metrics.of_no_images(), None
    space = benchmark.label_space("val")
    truth = torch.from_numpy(space.indices([sample.pair for sample in samples]))
    scorer, total, done = WorldScorer(space, model.calibration), torch.zeros((), device=model.device), 0
    with evaluation_mode(model), autocast(model.device, options.precision):
        bank = model.encode_pairs(space)
        for batch in image_batches(model, benchmark, "val", options):
            scores = model.score(model.encode_images(batch.images), bank)
            scorer.update(model.combine(scores, space), truth[batch.rows])
            if train.selection == "loss":
                total += len(batch.rows) * model.loss(
                    scores, to_device(truth[batch.rows], model.device), space, train
                )
            done += len(batch.rows)
            progress(done, len(samples))
    measured = scorer.measured()
    by_loss = float(total) / len(samples) if train.selection == "loss" else None
    return sweep(measured.summary, space), by_loss
