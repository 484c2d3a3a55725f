"""How sure a model is of pairs, objects and states, whether it is right, and from where on it can be trusted.

A *verdict* says of an image what is sure: the pair where its probability reaches a threshold, else the
object alone, else the state alone, else nothing. A threshold keeps a promised precision if, with 95 %
confidence, that share of the verdicts it gives is right (Wilson's lower bound on validation). Each
threshold is found on the images that those before it leave over, as it is used; see
:mod:`~refiner_cli.evaluation.metrics.precision_thresholds`.

Shapes: ``N`` or ``B`` images, ``P`` pairs, ``S`` states or objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from refiner_cli.core.models.calibration import (
    LEVELS,
    Confidence,
    Level,
    Promise,
    Temperatures,
    Threshold,
    tempered,
)
from refiner_cli.data.labels import BoolArray, IntArray, LabelSpace
from refiner_cli.evaluation.metrics.breakdown import bin_confidences
from refiner_cli.evaluation.metrics.precision_thresholds import (
    SURE,
    counted_images,
    pair_correlation,
    widest_threshold,
    wilson_interval,
)
from refiner_cli.evaluation.metrics.score_summary import FloatArray
from refiner_cli.evaluation.metrics.streaming import BLOCK_ELEMENTS

PROMISES = (*(percent / 100 for percent in range(50, 100, 5)), 0.97, 0.98, 0.99)
NOTHING = len(LEVELS)  # the verdict that nothing is sure


@dataclass(frozen=True)
class TopProbabilities:
    """The probability of each image's best pair, object and state, and whether it is right; ``N`` each."""

    probability: Mapping[Level, FloatArray]
    right: Mapping[Level, BoolArray]
    pairs: IntArray  # the true pair

    def __len__(self) -> int:
        return len(self.pairs)


def class_sums(probabilities: Tensor, space: LabelSpace) -> tuple[Tensor, Tensor]:
    """Probabilities of pairs ``B x P`` summed by object, ``B x O``, and by state, ``B x S``."""
    S, O = len(space.states), len(space.objects)  # noqa: E741
    if space.is_grid:  # several times faster on a CPU
        grid = probabilities.view(-1, S, O)
        return grid.sum(1), grid.sum(2)
    objects, states = (
        probabilities.new_zeros(len(probabilities), count).index_add_(
            1, torch.from_numpy(index).to(probabilities.device), probabilities
        )
        for index, count in ((space.pair_object, O), (space.pair_state, S))
    )
    return objects, states


def class_probabilities(scores: Tensor, space: LabelSpace) -> tuple[Tensor, Tensor, Tensor]:
    """Scores ``B x P`` -> probabilities of pairs ``B x P``, objects ``B x O`` and states ``B x S``."""
    pairs = scores.softmax(-1)
    return pairs, *class_sums(pairs, space)


@dataclass
class ConfidenceStream:
    """Takes final scores of images once and keeps how sure the model is of its best guesses.

    Args:
        temperatures: several sets, each of which is measured.
        bias: added to the scores of unseen pairs.
    """

    space: LabelSpace
    temperatures: Sequence[Temperatures]
    bias: float
    allowed: BoolArray | None = None  # P, the pairs that may compete; None: all
    _parts: list[list[dict[Level, tuple[Tensor, Tensor]]]] = field(init=False)  # by set of temperatures
    _pairs: list[Tensor] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        offset = torch.where(torch.from_numpy(self.space.seen), 0.0, self.bias)
        if self.allowed is not None:
            offset = offset.masked_fill(torch.from_numpy(~self.allowed), -torch.inf)
        self._offset = offset.float()  # P
        self._parts = [[] for _ in self.temperatures]
        self._index = {  # P, the class of each pair
            "pair": torch.arange(len(self.space.pairs)),
            "object": torch.from_numpy(self.space.pair_object),
            "state": torch.from_numpy(self.space.pair_state),
        }

    @torch.no_grad()
    def update(self, scores: Tensor, truth: Tensor) -> None:
        """Scores ``B x P`` and the true pair of each image, ``B`` int64."""
        self._offset = self._offset.to(scores.device)
        rows = max(BLOCK_ELEMENTS // scores.shape[1], 1)
        for block, true in zip(scores.float().split(rows), truth.cpu().split(rows), strict=True):
            biased = block + self._offset
            plain: dict[float, tuple[Tensor, Tensor, Tensor]] = {}  # by temperature of the pairs
            for chosen, parts in zip(self.temperatures, self._parts, strict=True):
                if chosen.pair not in plain:
                    plain[chosen.pair] = class_probabilities(biased / chosen.pair, self.space)
                pairs, objects, states = plain[chosen.pair]
                found: dict[Level, Tensor] = {
                    "pair": pairs,
                    "object": tempered(objects, chosen.object),
                    "state": tempered(states, chosen.state),
                }
                part: dict[Level, tuple[Tensor, Tensor]] = {}
                for level, probabilities in found.items():
                    best = probabilities.max(-1)
                    part[level] = (best.values.cpu(), best.indices.cpu() == self._index[level][true])
                parts.append(part)
            self._pairs.append(true)

    def results(self) -> list[TopProbabilities]:
        """For each set of temperatures."""
        pairs = torch.cat(self._pairs).numpy()
        return [TopProbabilities(*joined(parts), pairs) for parts in self._parts]


def joined(
    parts: Sequence[Mapping[Level, tuple[Tensor, Tensor]]],
) -> tuple[dict[Level, FloatArray], dict[Level, BoolArray]]:
    """The probabilities of all parts by level, and whether they are right."""
    columns = {level: list(zip(*(part[level] for part in parts), strict=True)) for level in LEVELS}
    return (
        {level: torch.cat(values).double().numpy() for level, (values, _) in columns.items()},
        {level: torch.cat(right).numpy() for level, (_, right) in columns.items()},
    )


def find_promises(found: TopProbabilities, images: IntArray | None = None) -> tuple[Promise, ...]:
    """The thresholds of every precision in ``PROMISES``, on validation.

    Args:
        images: ``N``, which image each row is of; None: another one each.
    """
    promises = []
    images = np.arange(len(found)) if images is None else images
    alike = {level: pair_correlation(found.right[level], found.pairs) for level in LEVELS}
    for precision in PROMISES:
        left = np.ones(len(found), np.bool_)
        thresholds: dict[Level, Threshold] = {}
        for level in LEVELS:
            probability, right = found.probability[level], found.right[level]
            value = widest_threshold(
                probability[left], right[left], found.pairs[left], precision, alike[level], images[left]
            )
            given = left & (probability >= (np.inf if value is None else value))
            thresholds[level] = Threshold(value, *share_and_precision(given, right))
            left &= ~given
        promises.append(Promise(precision, **thresholds))
    return tuple(promises)


def share_and_precision(given: BoolArray, right: BoolArray) -> tuple[float, float | None]:
    """Which share of the images got a verdict, and which share of these is right."""
    count = int(given.sum())
    return count / len(given), float(right[given].mean()) if count else None


def verdicts(found: TopProbabilities, promise: Promise) -> IntArray:
    """``N`` int64: the place in ``LEVELS`` of each image's verdict, or ``NOTHING``."""
    verdict = np.full(len(found), NOTHING)
    for place, level in reversed(list(enumerate(LEVELS))):
        value = getattr(promise, level).probability
        if value is not None:
            verdict[found.probability[level] >= value] = place
    return verdict


@dataclass(frozen=True)
class KeptPromise:
    """One threshold, what validation showed of it, and what another split shows."""

    precision: float  # promised
    level: Level
    threshold: Threshold  # with coverage and precision on validation
    coverage: float  # on this split
    measured: float | None
    interval: tuple[float, float] | None  # 95 %, of the measured precision


def kept_promises(found: TopProbabilities, promises: Sequence[Promise]) -> Iterator[KeptPromise]:
    """What a split shows of every stored threshold."""
    alike = {level: pair_correlation(found.right[level], found.pairs) for level in LEVELS}
    for promise in promises:
        verdict = verdicts(found, promise)
        for place, level in enumerate(LEVELS):
            given = verdict == place
            coverage, measured = share_and_precision(given, found.right[level])
            interval = None
            if measured is not None:
                counted = counted_images(found.pairs[given], alike[level])[-1]
                low, high = wilson_interval(np.array(measured), np.array(counted), SURE)
                interval = float(low), float(high)
            yield KeptPromise(promise.precision, level, getattr(promise, level), coverage, measured, interval)


@dataclass(frozen=True)
class MeasuredConfidence:
    """How sure a model is on a split, before temperatures and after."""

    before: TopProbabilities
    after: TopProbabilities
    confidence: Confidence

    @cached_property
    def kept(self) -> tuple[KeptPromise, ...]:
        """What the split shows of every stored threshold."""
        return tuple(kept_promises(self.after, self.confidence.promises))

    @cached_property
    def errors(self) -> dict[Level, tuple[float, float]]:
        """The expected calibration error before and after the temperatures, in percentage points."""
        before, after = (
            {level: bin_confidences(side.probability[level], side.right[level]).error for level in LEVELS}
            for side in (self.before, self.after)
        )
        return {level: (before[level], after[level]) for level in LEVELS}
