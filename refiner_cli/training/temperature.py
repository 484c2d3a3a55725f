"""Temperatures of probabilities, fitted by maximum likelihood (Guo et al., ICML 2017) on images that were not
learned from, and the thresholds from which on verdicts keep a promised precision.

One set for each world: in the open world other scores compete (no evidence for states and objects) among
far more pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from refiner_cli.core.models.calibration import Calibration, Confidence, Temperatures
from refiner_cli.core.runtime.device import autocast
from refiner_cli.data.benchmark import Sample, World
from refiner_cli.data.labels import IntArray, LabelSpace
from refiner_cli.evaluation.metrics.bootstrap import Interval
from refiner_cli.evaluation.metrics.confidence import ConfidenceStream, class_probabilities, find_promises
from refiner_cli.evaluation.metrics.score_summary import FloatArray
from refiner_cli.training.candidates import FEWEST_PAIRS
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
    most = MAX_SCORES_HELD // len(parts)
    by_part = [biased_scores(part, WORLDS, most) for part in parts]
    closed, wide = (
        # Of other parts, other pairs may be seen.
        fit_world(BiasedScores.join(found), parts[0].benchmark.label_space("val", world))
        for world, found in zip(WORLDS, zip(*by_part, strict=True), strict=True)
    )
    return replace(calibration, closed=closed, open=wide)


@dataclass(frozen=True)
class BiasedScores:
    """Final scores of images with the seen-unseen bias, on the CPU."""

    scores: Tensor  # N x P
    truth: Tensor  # N int64, the true pairs
    images: tuple[Sample, ...]  # N

    @classmethod
    def join(cls, parts: Sequence[BiasedScores]) -> BiasedScores:
        """All parts, in which an image may be several times."""
        return cls(
            torch.cat([one.scores for one in parts]),
            torch.cat([one.truth for one in parts]),
            tuple(image for one in parts for image in one.images),
        )

    def image_numbers(self) -> IntArray:
        """``N`` int64, the same where the image is the same."""
        number = {image: place for place, image in enumerate(dict.fromkeys(self.images))}
        return np.array([number[image] for image in self.images], dtype=np.int64)


def fit_world(found: BiasedScores, space: LabelSpace) -> Confidence:
    """The temperatures and thresholds of one world."""
    scores, truth = found.scores, found.truth
    pairs = truth.numpy()
    pair = best_temperature(scores, truth, pairs)
    _, objects, states = class_probabilities(scores / pair, space)
    obj, state = (
        best_temperature(sums.clamp_min(1e-30).log(), torch.from_numpy(index)[truth], pairs)
        for sums, index in ((objects, space.pair_object), (states, space.pair_state))
    )
    temperatures = Temperatures(pair, obj, state)
    stream = ConfidenceStream(space, (temperatures,), bias=0.0)  # the scores have it already
    stream.update(scores, truth)
    (sure,) = stream.results()
    return Confidence(temperatures, find_promises(sure, found.image_numbers()))


@torch.no_grad()
def biased_scores(images: EncodedImages, worlds: Sequence[World], most: int) -> list[BiasedScores]:
    """Those of the images in each world, in one pass.

    Args:
        most: scores of a world held at once.
    """
    model, benchmark = images.model, images.benchmark
    samples, views = benchmark.samples[images.split], model.calibration.tta_shifts
    pairs = [sample.pair for sample in samples]
    spaces = [benchmark.label_space(images.split, world) for world in worlds]
    wanted = [spread_mask(len(pairs), most // len(space.pairs)) for space in spaces]
    biases = [
        torch.where(torch.from_numpy(space.seen), 0.0, model.calibration.bias_of(is_open=space.is_open))
        for space in spaces
    ]
    parts: list[list[Tensor]] = [[] for _ in spaces]
    with autocast(model.device, images.options.precision):
        banks = [model.text_bank(space) for space in spaces]
        for rows, vectors in images.batches([views]):
            for space, bank, mask, bias, held in zip(spaces, banks, wanted, biases, parts, strict=True):
                chosen = mask[rows].nonzero().squeeze(1)
                scores = model.corrected_scores(vectors[views].take(chosen), bank)
                held.append(model.combine(scores, space).float().cpu() + bias)
    return [
        BiasedScores(
            torch.cat(held),
            torch.from_numpy(space.indices(pairs))[mask],
            tuple(compress(samples, mask.tolist())),
        )
        for space, mask, held in zip(spaces, wanted, parts, strict=True)
    ]


def best_temperature(logits: Tensor, truth: Tensor, pairs: IntArray) -> float:
    """The temperature with the lowest mean negative log-likelihood of the truth.

    The likelihood is concave in 1 / T, so the minimum over log T is the only one. One below 1, which makes
    a model surer of itself, has to help surely, else it is 1: other pairs may be harder than validation's. So
    it is where every image is right and the likelihood has no maximum.

    Args:
        logits: ``N x C``.
        truth: ``N`` int64.
        pairs: ``N``, the true pair of each image; images of one pair are alike.
    """

    def losses(log_temperature: float) -> Tensor:
        return F.cross_entropy(logits / math.exp(log_temperature), truth, reduction="none")

    found = minimum(lambda x: float(losses(x).mean()), math.log(RANGE[0]), math.log(RANGE[1]))
    if found < math.log(RANGE[0]) + 2 * PRECISION:
        return 1.0
    gain = (losses(0.0) - losses(found)).double().numpy()
    return math.exp(found) if found > 0 or surely_positive(gain, pairs) else 1.0


def surely_positive(values: FloatArray, pairs: IntArray) -> bool:
    """Whether the mean of ``N`` values is above 0 beyond chance, by a bootstrap over the pairs.

    A few pairs cannot tell.
    """
    names, group = np.unique(pairs, return_inverse=True)
    if len(names) < FEWEST_PAIRS:
        return False
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
