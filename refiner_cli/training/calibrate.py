"""Calibration after training: what follows training is chosen on the validation split, for any method.

Where there is none, it can be chosen on the images that each model of a cross-validation did not learn from
(see :mod:`~refiner_cli.training.cross_validation`), all together.

In steps: the settings of the composition score (shifted views, interpolation of words, hubness correction)
by the mean AUC of both worlds, the weights of the evidence for state and object by that of the closed world,
where alone they count, the bias of each world, and last the temperatures of probabilities. Of the candidates
of a step the one with the largest sure gain over the plainest, the first, is chosen, by a paired bootstrap
over the pairs: the best of many candidates looks better than it is.

The test split is never read; training images are, for the centres of the hubness correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from refiner_cli.config import CalibrationConfig
from refiner_cli.core.models.base import Model, TextBank
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.core.models.hubness import HubnessCorrection
from refiner_cli.core.runtime.device import RuntimeOptions, autocast
from refiner_cli.data.benchmark import Benchmark, World
from refiner_cli.data.labels import IntArray, LabelSpace
from refiner_cli.evaluation.metrics.bias_sweep import Metrics, sweep
from refiner_cli.evaluation.metrics.bootstrap import MeasuredSplit
from refiner_cli.evaluation.metrics.score_summary import ScoreSummary
from refiner_cli.evaluation.scoring import (
    ProgressFn,
    WorldScorer,
    evaluation_mode,
    image_batches,
    no_progress,
)
from refiner_cli.training.candidates import (
    Candidate,
    choose,
    composition_candidates,
    evidence_candidates,
)
from refiner_cli.training.encoded_images import ByViews, EncodedImages, spread_mask
from refiner_cli.training.temperature import WORLDS, fit_confidence

MAX_SCORES = 1 << 29  # per candidate; where images times pairs are more, evenly spread images are taken
IMAGES_PER_CENTRE = 8  # training images of each pair that its centre is estimated from


@dataclass(frozen=True)
class HeldOut:
    """A model, and a benchmark whose validation images it did not learn from."""

    model: Model
    benchmark: Benchmark


@dataclass(frozen=True)
class Calibrated:
    """The chosen calibration and how it was found; metrics are in percent."""

    calibration: Calibration
    metrics: Metrics  # on the images that it was chosen on
    plain: Metrics  # of the plainest settings
    criterion: str
    candidates: tuple[tuple[Calibration, dict[World, float | None]], ...]  # with the criterion by world

    @property
    def validation(self) -> Metrics:
        """Metrics on the validation split; undefined where the choice was made on other images."""
        return self.metrics if self.calibration.chosen_on == "validation" else Metrics.of_no_images()

    def to_json(self) -> dict[str, Any]:
        measured = {"before": self.plain.to_json(), "after": self.metrics.to_json()}
        crossed = self.calibration.chosen_on == "cross-validation"
        return {
            "chosen_on": self.calibration.chosen_on,
            "criterion": self.criterion,
            "calibration": self.calibration.to_json(),
            "val": dict.fromkeys(measured, self.validation.to_json()) if crossed else measured,
            **({"cross_validation": measured} if crossed else {}),
            "candidates": [
                {name: tried.to_json()[name] for name in TRIED} | {"values": values}
                for tried, values in self.candidates
            ],
        }


TRIED = (
    "tta_shifts", "wise_ft_alpha", "hubness_strength", "hubness_softness", "state_weight", "object_weight",
)  # fmt: skip


def calibrate(
    model: Model,
    benchmark: Benchmark,
    config: CalibrationConfig,
    options: RuntimeOptions,
    progress: ProgressFn = no_progress,
    folds: Sequence[HeldOut] = (),
) -> Calibrated:
    """Choose a calibration and give it to the model, with the centres of the hubness correction.

    Args:
        folds: the models of a cross-validation of the training split; used without a validation image.
            Without both, the calibration is the plainest one.
    """
    if not benchmark.samples["val"] and not folds:
        return plainest(model, benchmark, config, options, progress)
    own = bool(benchmark.samples["val"])
    measured = [HeldOut(model, benchmark)] if own else list(folds)
    composition = composition_candidates(model, config)
    counts = sorted({tried.tta_shifts for tried in composition})
    parts = [EncodedImages(one.model, one.benchmark, "val", options, progress, counts) for one in measured]
    with ExitStack() as modes:
        for one in measured:
            modes.enter_context(evaluation_mode(one.model))
            if any(tried.hubness_strength for tried in composition):
                fit_hubness(one.model, one.benchmark, options, progress)
        found = measure_candidates(parts, composition, WORLDS)
        chosen = choose(found)
        _, wide = chosen.worlds[1]  # what follows changes no score of the open world
        plain = plainest_settings(model, config)
        weighted = evidence_candidates(model, chosen.calibration, config)
        if weighted != [chosen.calibration]:
            known = {one.calibration for one in found}
            beside = {plain} - known  # measured, but no candidate of this step
            others = measure_candidates(parts, list(dict.fromkeys([*beside, *weighted])), WORLDS[:1])
            chosen = choose([one for one in others if one.calibration in weighted])
            found += [one for one in others if one.calibration not in known]
        before = next(one.metrics for one in found if one.calibration == plain)
        calibration = replace(
            chosen.calibration,
            bias=chosen.metrics.bias or 0.0,
            open_bias=wide.bias,
            chosen_on="validation" if own else "cross-validation",
        )
        if config.temperature:
            calibration = fit_confidence(calibration, parts)
    use_calibration(HeldOut(model, benchmark), calibration, options, progress, fitted=own)
    tried = tuple((one.calibration, dict(zip(WORLDS, one.values, strict=False))) for one in found)
    return Calibrated(calibration, chosen.metrics, before, chosen.criterion, tried)


def plainest_settings(model: Model, config: CalibrationConfig) -> Calibration:
    """The first candidate of every step: what stands where the images show nothing."""
    calibration = composition_candidates(model, config)[0]
    return evidence_candidates(model, calibration, config)[0]


def plainest(
    model: Model,
    benchmark: Benchmark,
    config: CalibrationConfig,
    options: RuntimeOptions,
    progress: ProgressFn,
) -> Calibrated:
    """The plainest settings: nothing can be chosen."""
    calibration = replace(plainest_settings(model, config), chosen_on="nothing")
    use_calibration(HeldOut(model, benchmark), calibration, options, progress, fitted=False)
    return Calibrated(calibration, Metrics.of_no_images(), Metrics.of_no_images(), "none", ())


def use_calibration(
    trained: HeldOut, calibration: Calibration, options: RuntimeOptions, progress: ProgressFn, *, fitted: bool
) -> None:
    """Give a model its calibration.

    Args:
        fitted: whether the model already has the centres of the hubness correction.
    """
    model = trained.model
    if not calibration.hubness_strength:
        model.hubness = None
    elif not fitted:
        fit_hubness(model, trained.benchmark, options, progress)
    model.calibration = calibration


@torch.no_grad()
def measure_candidates(
    parts: Sequence[EncodedImages], grid: Sequence[Calibration], worlds: Sequence[World]
) -> list[Candidate]:
    """What the images of all parts together say of every candidate in each world."""
    by_part = [measure_part(part, grid, worlds) for part in parts]
    by_world = [
        [join_splits(several) for several in zip(*of_one, strict=True)]
        for of_one in zip(*by_part, strict=True)
    ]
    return [
        Candidate(calibration, tuple((split, sweep(split.summary, split.space)) for split in measured))
        for calibration, *measured in zip(grid, *by_world, strict=True)
    ]


def join_splits(measured: Sequence[MeasuredSplit]) -> MeasuredSplit:
    """Several parts' images as one split; their label spaces differ at most in which pairs are seen."""
    return MeasuredSplit(ScoreSummary.join([one.summary for one in measured]), measured[0].space)


def measure_part(
    images: EncodedImages, grid: Sequence[Calibration], worlds: Sequence[World]
) -> list[list[MeasuredSplit]]:
    """Every candidate's scores in each world, in one pass over the images' vectors."""
    # Texts too: frozen weights in half precision can be used under autocast alone.
    with autocast(images.model.device, images.options.precision):
        scorers = [CandidateScorers(images, grid, world) for world in worlds]
        for rows, by_views in images.batches(sorted({tried.tta_shifts for tried in grid})):
            for one in scorers:
                one.update(rows, by_views)
    return [one.measured() for one in scorers]


class CandidateScorers:
    """The scores of every candidate in one world. Use it within autocast."""

    def __init__(self, images: EncodedImages, grid: Sequence[Calibration], world: World) -> None:
        self.model, space = images.model, images.benchmark.label_space(images.split, world)
        samples = images.benchmark.samples[images.split]
        self.truth = torch.from_numpy(space.indices([one.pair for one in samples]))
        self.wanted = spread_mask(len(samples), MAX_SCORES // len(space.pairs))
        self.scorers = [WorldScorer(space, tried) for tried in grid]
        self.banks = text_banks(self.model, grid, space)
        self.offsets = {
            tried: self.model.with_offsets(self.banks[tried.wise_ft_alpha], tried).offsets for tried in grid
        }
        self.groups: dict[tuple[int, float], list[WorldScorer]] = {}  # those that share vectors and texts
        for scorer in self.scorers:
            key = (scorer.calibration.tta_shifts, scorer.calibration.wise_ft_alpha)
            self.groups.setdefault(key, []).append(scorer)

    def update(self, rows: torch.Tensor, by_views: ByViews) -> None:
        """Some images by their rows, ``B`` int64, and their vectors."""
        chosen = self.wanted[rows].nonzero().squeeze(1)
        for (views, alpha), group in self.groups.items():
            scores = self.model.score(by_views[views].take(chosen), self.banks[alpha])
            for scorer in group:
                corrected = scores.corrected(self.offsets[scorer.calibration])
                total = self.model.combine(corrected, scorer.space, scorer.calibration)
                scorer.update(total, self.truth[rows[chosen]])

    def measured(self) -> list[MeasuredSplit]:
        return [scorer.measured() for scorer in self.scorers]


def text_banks(model: Model, grid: Sequence[Calibration], space: LabelSpace) -> dict[float, TextBank]:
    """The texts of a label space by the weight of the learned words."""
    banks: dict[float, TextBank] = {}
    for tried in grid:
        if tried.wise_ft_alpha not in banks:
            model.calibration = tried
            banks[tried.wise_ft_alpha] = model.encode_pairs(space)
    return banks


@torch.no_grad()
def fit_hubness(
    model: Model, benchmark: Benchmark, options: RuntimeOptions, progress: ProgressFn = no_progress
) -> None:
    """Estimate the centres of the hubness correction from some training images, seen without shifts."""
    pairs = [sample.pair for sample in benchmark.samples["train"]]
    space = benchmark.label_space("train").training()
    truth = space.indices(pairs)
    rows = [int(row) for pair in np.unique(truth) for row in spread_rows(np.flatnonzero(truth == pair))]
    vectors = []
    with evaluation_mode(model), autocast(model.device, options.precision):
        for batch in image_batches(model, benchmark, "train", options, rows):
            vectors.append(model.encode_images(batch.images).composition)
            progress(0, len(rows))
    model.hubness = HubnessCorrection(len(space.pairs), model.backbone.embed_dim).to(model.device)
    model.hubness.fit(torch.cat(vectors), torch.from_numpy(truth[rows]).to(model.device))


def spread_rows(rows: IntArray) -> IntArray:
    """At most ``IMAGES_PER_CENTRE`` of them, evenly spread."""
    count = min(len(rows), IMAGES_PER_CENTRE)
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]
