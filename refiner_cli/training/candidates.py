"""What calibration compares: candidates of settings, and the rule that chooses among them."""

from __future__ import annotations

import math
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
    MeasuredSplit,
    bootstrap_rows,
    nan_if_none,
    resample,
)
from refiner_cli.evaluation.metrics.score_summary import FloatArray
from refiner_cli.evaluation.metrics.seen_unseen import step_curve

COMPARISON_SAMPLES = 200  # bootstrap samples of the validation set on which candidates are compared
GAIN_LEVEL = 0.95
FEWEST_PAIRS = 5  # with fewer, all of them agree by chance in more than one case of 20


@dataclass(frozen=True)
class Candidate:
    """Settings that were tried, and what validation says of them in each world that they are chosen by."""

    calibration: Calibration
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

    def samples(self) -> FloatArray:
        """The mean of the criterion over the worlds, on resampled pairs."""
        samples = [
            criterion_samples(split, self.criterion)
            for split, metrics in self.worlds
            if getattr(metrics, self.criterion) is not None
        ]
        return np.mean(samples, axis=0)


def criterion_samples(split: MeasuredSplit, criterion: str) -> FloatArray:
    """A metric on resampled pairs: a choice is made for other pairs, and images of one pair are alike.

    NaN where there are too few pairs to tell anything. The area needs the breakpoints of the images alone.
    """
    summary = split.summary
    if len(np.unique(summary.truth)) < FEWEST_PAIRS:
        return np.full(COMPARISON_SAMPLES, np.nan)
    if criterion != "AUC":
        found = resample(summary, split.space, bootstrap_samples=COMPARISON_SAMPLES, clusters=summary.truth)
        return found[criterion]
    change, seen = summary.breakpoints(), summary.truth_seen
    curves = (
        step_curve(change[rows], seen[rows])
        for rows in bootstrap_rows(len(summary), summary.truth, COMPARISON_SAMPLES, 0)
    )
    return np.array([nan_if_none(curve.area) for curve in curves])


def composition_candidates(model: Model, config: CalibrationConfig) -> list[Calibration]:
    """The grid of settings of the composition score, the plainest first."""
    alphas = config.wise_ft_alpha if model.learns_words else (Calibration().wise_ft_alpha,)
    found: dict[Calibration, None] = {}
    for views, alpha, strength, softness in ranked_product(
        config.tta_shifts, alphas, config.hubness_strength, config.hubness_softness
    ):
        if not strength:
            softness = config.hubness_softness[0]  # noqa: PLW2901 - without strength it has no effect
        tried = Calibration(
            tta_shifts=views, wise_ft_alpha=alpha, hubness_strength=strength, hubness_softness=softness
        )
        found.setdefault(tried)
    return list(found)


def evidence_candidates(model: Model, chosen: Calibration, config: CalibrationConfig) -> list[Calibration]:
    """The grid of evidence weights, the plainest first; a branch that the model lacks has no weight."""
    states = config.state_weight if model.has_state_branch else (0.0,)
    objects = config.object_weight if model.has_object_branch else (0.0,)
    return [
        replace(chosen, state_weight=b_s, object_weight=b_o) for b_s, b_o in ranked_product(states, objects)
    ]


def ranked_product(*lists: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Every combination of values, by the sum of their places in the lists."""
    ranked = product(*(enumerate(values) for values in lists))
    for combination in sorted(ranked, key=lambda one: sum(place for place, _ in one)):
        yield tuple(value for _, value in combination)


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate with the largest sure gain over the plainest, the first; the plainest if none has one.

    Of equal gains the first counts.
    """
    plainest, *others = candidates
    samples = plainest.samples()
    gains = [0.0, *(sure_gain(one.samples() - samples) for one in others)]
    return candidates[gains.index(max(gains))]


def sure_gain(differences: FloatArray) -> float:
    """What a gain on the same resampled pairs exceeds with a probability of ``GAIN_LEVEL``; -inf without any.

    A candidate whose answers differ from the plainest one's in many images has to gain more than one that
    differs in few, and the best of many candidates looks better than it is.
    """
    defined = differences[~np.isnan(differences)]
    return float(np.quantile(defined, 1 - GAIN_LEVEL)) if len(defined) else -math.inf
