"""Calibration after training: what follows training is chosen on the validation split, for any method.

In steps: the settings of the composition score (shifted views, interpolation of words, hubness correction)
by the mean AUC of both worlds, the weights of the evidence for state and object by that of the closed world,
where alone they count, the bias, and last the temperatures of probabilities. Of the candidates of a step the
plainest is chosen that the best one does not surely surpass, by a paired bootstrap over images: the best of
many candidates looks better than it is.

The test split is never read; training images are, for the centres of the hubness correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from refiner_cli.config import CalibrationConfig
from refiner_cli.core.models.base import Model, TextBank
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.core.models.hubness import HubnessCorrection
from refiner_cli.core.runtime.device import RuntimeOptions, autocast
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.data.labels import IntArray, LabelSpace
from refiner_cli.evaluation.metrics.bias_sweep import Metrics, sweep
from refiner_cli.evaluation.metrics.bootstrap import (
    MeasuredSplit,
)
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
from refiner_cli.training.encoded_images import EncodedImages, spread_mask
from refiner_cli.training.temperature import WORLDS, fit_confidence

MAX_SCORES = 1 << 29  # per candidate; where images times pairs are more, evenly spread images are taken
IMAGES_PER_CENTRE = 8  # training images of each pair that its centre is estimated from


@dataclass(frozen=True)
class Calibrated:
    """The chosen calibration and how it was found; metrics are of validation, in percent."""

    calibration: Calibration
    metrics: Metrics
    plain: Metrics  # of the plainest settings
    criterion: str
    candidates: tuple[tuple[Calibration, float], ...]  # with the value of the metric

    def to_json(self) -> dict[str, Any]:
        return {
            "chosen_on": "val",
            "criterion": self.criterion,
            "calibration": self.calibration.to_json(),
            "val": {"before": self.plain.to_json(), "after": self.metrics.to_json()},
            "candidates": [
                {name: tried.to_json()[name] for name in TRIED} | {"value": value}
                for tried, value in self.candidates
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
) -> Calibrated:
    """Choose a calibration and give it to the model, with the centres of the hubness correction.

    Without a validation image it is the plainest one.
    """
    if not benchmark.samples["val"]:
        return plainest(model, benchmark, config, options, progress)
    composition = composition_candidates(model, config)
    closed, wide = (benchmark.label_space("val", world) for world in WORLDS)
    counts = sorted({tried.tta_shifts for tried, _ in composition})
    images = EncodedImages(model, benchmark, "val", options, progress, counts)
    with evaluation_mode(model):
        if any(tried.hubness_strength for tried, _ in composition):
            fit_hubness(model, benchmark, options, progress)
        found = measure_candidates(model, images, composition, (closed, wide))
        chosen = choose(found)
        weighted = evidence_candidates(model, chosen.calibration, config)
        if len(weighted) > 1:
            others = measure_candidates(model, images, weighted, (closed,))
            chosen = choose(others)
            found += others[1:]
        calibration = replace(chosen.calibration, bias=chosen.metrics.bias or 0.0)
        if not calibration.hubness_strength:
            model.hubness = None
        model.calibration = calibration
        if config.temperature:
            model.calibration = fit_confidence(model, images)
    tried = tuple((one.calibration, one.value) for one in found)
    return Calibrated(model.calibration, chosen.metrics, found[0].metrics, chosen.criterion, tried)


def plainest(
    model: Model,
    benchmark: Benchmark,
    config: CalibrationConfig,
    options: RuntimeOptions,
    progress: ProgressFn,
) -> Calibrated:
    """The first of all candidates: nothing can be chosen."""
    (calibration, _), *_ = composition_candidates(model, config)
    (calibration, _), *_ = evidence_candidates(model, calibration, config)
    model.hubness = None
    if calibration.hubness_strength:
        fit_hubness(model, benchmark, options, progress)
    model.calibration = calibration
    return Calibrated(calibration, Metrics.of_no_images(), Metrics.of_no_images(), "none", ())


@torch.no_grad()
def measure_candidates(
    model: Model,
    images: EncodedImages,
    grid: Sequence[tuple[Calibration, int]],
    spaces: Sequence[LabelSpace],
) -> list[Candidate]:
    """What validation says of every candidate over each label space."""
    worlds = [measure_world(model, images, [tried for tried, _ in grid], space) for space in spaces]
    return [
        Candidate(
            tried,
            complexity,
            tuple((split, sweep(split.summary, split.space)) for split in measured),
        )
        for (tried, complexity), *measured in zip(grid, *worlds, strict=True)
    ]


def measure_world(
    model: Model, images: EncodedImages, grid: Sequence[Calibration], space: LabelSpace
) -> list[MeasuredSplit]:
    """Every candidate's scores over one label space, in one pass over the images' vectors."""
    pairs = [sample.pair for sample in images.benchmark.samples[images.split]]
    truth = torch.from_numpy(space.indices(pairs))
    wanted = spread_mask(len(pairs), MAX_SCORES // len(space.pairs))
    scorers = [WorldScorer(space, tried) for tried in grid]
    banks = text_banks(model, grid, space)
    offsets = {tried: model.with_offsets(banks[tried.wise_ft_alpha], tried).offsets for tried in grid}
    groups: dict[tuple[int, float], list[WorldScorer]] = {}
    for scorer in scorers:
        key = (scorer.calibration.tta_shifts, scorer.calibration.wise_ft_alpha)
        groups.setdefault(key, []).append(scorer)
    with autocast(model.device, images.options.precision):
        for rows, by_views in images.batches(sorted({views for views, _ in groups})):
            chosen = wanted[rows].nonzero().squeeze(1)
            for (views, alpha), group in groups.items():
                scores = model.score(by_views[views].take(chosen), banks[alpha])
                for scorer in group:
                    corrected = scores.corrected(offsets[scorer.calibration])
                    total = model.combine(corrected, space, scorer.calibration)
                    scorer.update(total, truth[rows[chosen]])
    return [scorer.measured() for scorer in scorers]


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
