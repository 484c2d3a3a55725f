"""What calibration compares: candidates of settings, and the rule that chooses among them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from refiner_cli.config import CalibrationConfig
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.evaluation.metrics.bias_sweep import Metrics
from refiner_cli.evaluation.metrics.bootstrap import (
    Interval,
    MeasuredSplit,
    bootstrap_rows,
    nan_if_none,
    resample,
)
from refiner_cli.evaluation.metrics.score_summary import FloatArray
from refiner_cli.evaluation.metrics.seen_unseen import step_curve

COMPARISON_SAMPLES = 200  # bootstrap samples of the validation set on which candidates are compared


@dataclass(frozen=True)
class Candidate:
    """Settings that were tried, and what validation says of them in each world that they are chosen by."""

    calibration: Calibration
    complexity: int  # how many steps its values are from the plainest ones, all together
    worlds: tuple[tuple[MeasuredSplit, Metrics], ...]  # the closed world first

    @property
    def metrics(self) -> Metrics:
        """Those of the closed world."""
        return self.worlds[0][1]

    @property
    def criterion(self) -> str:
        """The metric that is compared; the images decide which one is defined, so it is the same for all."""
        return self.metrics.selection_metric()[0]

    @property
    def values(self) -> list[float | None]:
        """The criterion in each world."""
        return [getattr(metrics, self.criterion) for _, metrics in self.worlds]

    @property
    def value(self) -> float:
        """The mean of the criterion over the worlds."""
        return statistics.fmean(value for value in self.values if value is not None)

    def samples(self) -> FloatArray:
        """The same mean on resampled images."""
        samples = [
            criterion_samples(split, self.criterion)
            for split, metrics in self.worlds
            if getattr(metrics, self.criterion) is not None
        ]
        return np.mean(samples, axis=0)


def criterion_samples(split: MeasuredSplit, criterion: str) -> FloatArray:
    """A metric on resampled images; the area needs the breakpoints of images alone."""
    summary = split.summary
    if criterion != "AUC":
        found = resample(summary, split.space, bootstrap_samples=COMPARISON_SAMPLES, images=split.images)
        return found[criterion]
    change, seen = summary.breakpoints(), summary.truth_seen
    curves = (
        step_curve(change[rows], seen[rows])
        for rows in bootstrap_rows(len(summary), split.images, COMPARISON_SAMPLES, 0)
    )
    return np.array([nan_if_none(curve.area) for curve in curves])


def composition_candidates(model: Model, config: CalibrationConfig) -> list[tuple[Calibration, int]]:
    """The grid of settings of the composition score, the plainest first, each with its complexity."""
    alphas = config.wise_ft_alpha if model.learns_words else (Calibration().wise_ft_alpha,)
    found: dict[Calibration, int] = {}
    for places, (views, alpha, strength, softness) in ranked_product(
        config.tta_shifts, alphas, config.hubness_strength, config.hubness_softness
    ):
        if not strength:
            softness = config.hubness_softness[0]  # noqa: PLW2901 - without strength it has no effect
        tried = Calibration(
            tta_shifts=views, wise_ft_alpha=alpha, hubness_strength=strength, hubness_softness=softness
        )
        found.setdefault(tried, sum(places))
    return list(found.items())


def evidence_candidates(
    model: Model, chosen: Calibration, config: CalibrationConfig
) -> list[tuple[Calibration, int]]:
    """The grid of evidence weights, the plainest first; a branch that the model lacks has no weight."""
    states = config.state_weight if model.has_state_branch else (0.0,)
    objects = config.object_weight if model.has_object_branch else (0.0,)
    return [
        (replace(chosen, state_weight=b_s, object_weight=b_o), sum(places))
        for places, (b_s, b_o) in ranked_product(states, objects)
    ]


def ranked_product(*lists: Sequence[Any]) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
    """Every combination of values with their places in the lists, by rising sum of places."""
    everything = product(*(enumerate(values) for values in lists))
    ranked = [tuple(zip(*combination, strict=True)) for combination in everything]
    yield from sorted(((places, values) for places, values in ranked), key=lambda one: sum(one[0]))


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The plainest candidate that the best one does not surpass by more than chance.

    Of equally plain ones the better comes first.
    """
    best = max(candidates, key=lambda one: (one.value, -one.complexity))
    samples = best.samples()
    for one in sorted(candidates, key=lambda one: (one.complexity, -one.value)):
        if one is best or not surely_better(one.samples(), samples):
            return one
    return best


def surely_better(plain: FloatArray, best: FloatArray) -> bool:
    """Whether a metric of ``best`` exceeds that of ``plain`` on the same resampled images beyond chance."""
    interval = Interval.of(best - plain)
    return interval is not None and interval.low > 0
