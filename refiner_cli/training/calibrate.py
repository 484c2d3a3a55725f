"""Calibration after training: everything fitted on the validation split, and on training images.

The test split is never read.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch

from refiner_cli.core.models.base import Calibration, Model
from refiner_cli.core.runtime.device import RuntimeOptions, autocast
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.data.labels import IntArray
from refiner_cli.evaluation.metrics.bias_sweep import Metrics, sweep
from refiner_cli.evaluation.metrics.bootstrap import MeasuredSplit, differences
from refiner_cli.evaluation.scoring import (
    ProgressFn,
    WorldScorer,
    image_batches,
    no_progress,
    score_split,
)

CALIBRATION_SAMPLES = 200  # bootstrap samples of the validation set that a weight above zero must win on
IMAGES_PER_CENTRE = 8  # training images of each pair that its centre is estimated from
WEIGHT_CANDIDATES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)  # candidates for b_s and b_o


def calibrate(
    model: Model, benchmark: Benchmark, options: RuntimeOptions, progress: ProgressFn = no_progress
) -> tuple[Calibration, Metrics]:
    """Select the inference weights on the validation split by closed-world AUC, or what stands for it.

    Weights above zero must be better than zero beyond chance, by a paired bootstrap: the best of many
    candidates looks better than it is, most where validation has few unseen pairs. Among equals the
    smallest weights win.
    """
    fit_hubness(model, benchmark, options, progress)
    space = benchmark.label_space("val")
    scorers = [WorldScorer(space, Calibration(b_s, b_o)) for b_s, b_o in weight_candidates(model)]
    score_split(model, benchmark, "val", scorers, options, progress)
    found = [(scorer, sweep(scorer.stream.summary(), space)) for scorer in scorers]
    plain, best = found[0], max(found, key=lambda pair: pair[1].selection_metric()[1])
    if best is not plain and not surely_better(
        plain[0].measured(), best[0].measured(), best[1].selection_metric()[0]
    ):
        best = plain
    scorer, metrics = best
    weights = scorer.calibration
    return Calibration(weights.state_weight, weights.object_weight, metrics.bias or 0.0), metrics


def surely_better(plain: MeasuredSplit, best: MeasuredSplit, metric: str) -> bool:
    """Whether a closed-world metric of ``best`` exceeds that of ``plain`` by more than chance."""
    interval = differences(plain, best, bootstrap_samples=CALIBRATION_SAMPLES)[metric].interval
    return interval is not None and interval.low > 0


@torch.no_grad()
def fit_hubness(
    model: Model, benchmark: Benchmark, options: RuntimeOptions, progress: ProgressFn = no_progress
) -> None:
    """Estimate the centres of a model's hubness correction, if it has one, from some training images."""
    if model.hubness is None:
        return
    model.eval()
    pairs = [sample.pair for sample in benchmark.samples["train"]]
    truth = benchmark.label_space("train").training().indices(pairs)
    rows = [int(row) for pair in np.unique(truth) for row in spread_rows(np.flatnonzero(truth == pair))]
    vectors = []
    with autocast(model.device, options.precision):
        for batch in image_batches(model, benchmark, "train", options, rows):
            vectors.append(model.encode_images_tta(batch.images).composition)
            progress(0, len(rows))
    model.hubness.fit(torch.cat(vectors), torch.from_numpy(truth[rows]).to(model.device))


def spread_rows(rows: IntArray) -> IntArray:
    """At most ``IMAGES_PER_CENTRE`` of them, evenly spread."""
    count = min(len(rows), IMAGES_PER_CENTRE)
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]


def weight_candidates(model: Model) -> list[tuple[float, float]]:
    """The grid of inference weights, smallest first; a branch that the model lacks has no weight."""
    states = WEIGHT_CANDIDATES if model.has_state_branch else WEIGHT_CANDIDATES[:1]
    objects = WEIGHT_CANDIDATES if model.has_object_branch else WEIGHT_CANDIDATES[:1]
    return sorted(product(states, objects), key=sum)
