"""Temperatures of probabilities, fitted by maximum likelihood (Guo et al., ICML 2017) on images that were not
learned from, and the thresholds from which on verdicts keep a promised precision.

One set for each world: in the open world other scores compete (no evidence for states and objects) among
far more pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from refiner_cli.core.models.calibration import Calibration, Confidence, Temperatures
from refiner_cli.core.runtime.device import autocast
from refiner_cli.data.benchmark import World
from refiner_cli.data.labels import IntArray, LabelSpace
from refiner_cli.evaluation.metrics.bootstrap import Interval
from refiner_cli.evaluation.metrics.confidence import ConfidenceStream, class_sums, find_promises
from refiner_cli.evaluation.metrics.score_summary import FloatArray
from refiner_cli.training.encoded_images import EncodedImages, spread_mask

MAX_SCORES_HELD = 1 << 27  # scores held at once; where there are more, evenly spread images are taken
WORLDS: tuple[World, World] = ("closed", "open")
RANGE = (1e-2, 1e2)  # of a temperature
PAIR_SAMPLES = 1000  # bootstrap samples that a temperature below 1 must win on
PRECISION = 1e-3  # of its logarithm


def fit_confidence(calibration: Calibration, parts: Sequence[EncodedImages]) -> Calibration:
    """A calibration with the confidence of both worlds; every part's model is left with the calibration.

    Args:
        parts: images, each with a model that did not learn from them.
    """
    for part in parts:
        part.model.calibration = calibration
    closed, wide = (fit_world(parts, world) for world in WORLDS)
    return replace(calibration, closed=closed, open=wide)


def fit_world(parts: Sequence[EncodedImages], world: World) -> Confidence:
    """The temperatures and thresholds of one world."""
    space = parts[0].benchmark.label_space("val", world)  # of others, other pairs may be seen
    most = MAX_SCORES_HELD // len(parts)
    found = [biased_scores(part, part.benchmark.label_space("val", world), most) for part in parts]
    scores, truth = (torch.cat(one) for one in zip(*found, strict=True))
    pairs = truth.numpy()
    pair = best_temperature(scores, truth, pairs)
    probabilities = (scores / pair).softmax(-1)
    obj, state = (
        best_temperature(sums.clamp_min(1e-30).log(), torch.from_numpy(index)[truth], pairs)
        for sums, index in zip(
            class_sums(probabilities, space), (space.pair_object, space.pair_state), strict=True
        )
    )
    temperatures = Temperatures(pair, obj, state)
    stream = ConfidenceStream(space, temperatures, bias=0.0)  # the scores have it already
    stream.update(scores, truth)
    return Confidence(temperatures, find_promises(stream.result()))


@torch.no_grad()
def biased_scores(images: EncodedImages, space: LabelSpace, most: int) -> tuple[Tensor, Tensor]:
    """Final scores ``N x P`` with the seen-unseen bias, on the CPU, and the true pairs ``N``.

    Args:
        most: scores held at once.
    """
    model = images.model
    pairs = [sample.pair for sample in images.benchmark.samples[images.split]]
    wanted = spread_mask(len(pairs), most // len(space.pairs))
    bias = torch.where(torch.from_numpy(space.seen), 0.0, model.calibration.bias)
    parts, kept = [], []
    views = model.calibration.tta_shifts
    with autocast(model.device, images.options.precision):
        bank = model.text_bank(space)
        for rows, vectors in images.batches([views]):
            chosen = wanted[rows].nonzero().squeeze(1)
            scores = model.corrected_scores(vectors[views].take(chosen), bank)
            parts.append(model.combine(scores, space).float().cpu() + bias)
            kept.append(rows[chosen])
    truth = torch.from_numpy(space.indices(pairs))[torch.cat(kept)]
    return torch.cat(parts), truth


def best_temperature(logits: Tensor, truth: Tensor, pairs: IntArray) -> float:
    """The temperature with the lowest mean negative log-likelihood of the truth.

    The likelihood is concave in 1 / T, so the minimum over log T is the only one. One below 1, which makes
    a model surer of itself, has to help surely, else it is 1: other pairs may be harder than validation's.

    Args:
        logits: ``N x C``.
        truth: ``N`` int64.
        pairs: ``N``, the true pair of each image; images of one pair are alike.
    """

    def losses(log_temperature: float) -> Tensor:
        return F.cross_entropy(logits / math.exp(log_temperature), truth, reduction="none")

    found = minimum(lambda x: float(losses(x).mean()), math.log(RANGE[0]), math.log(RANGE[1]))
    gain = (losses(0.0) - losses(found)).double().numpy()
    return math.exp(found) if found > 0 or surely_positive(gain, pairs) else 1.0


def surely_positive(values: FloatArray, pairs: IntArray) -> bool:
    """Whether the mean of ``N`` values is above 0 beyond chance, by a bootstrap over the pairs."""
    _, group = np.unique(pairs, return_inverse=True)
    sums, sizes = np.bincount(group, values), np.bincount(group)
    drawn = np.random.default_rng(0).integers(len(sizes), size=(PAIR_SAMPLES, len(sizes)))
    interval = Interval.of(sums[drawn].sum(1) / sizes[drawn].sum(1))
    return interval is not None and interval.low > 0


def minimum(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley has its minimum, by golden-section search."""
    ratio = (math.sqrt(5) - 1) / 2
    inner = [high - ratio * (high - low), low + ratio * (high - low)]
    values = [function(x) for x in inner]
    while high - low > PRECISION:
        if values[0] <= values[1]:
            high, inner[1], values[1] = inner[1], inner[0], values[0]
            inner[0] = high - ratio * (high - low)
            values[0] = function(inner[0])
        else:
            low, inner[0], values[0] = inner[0], inner[1], values[1]
            inner[1] = low + ratio * (high - low)
            values[1] = function(inner[1])
    return (low + high) / 2
