"""How long a reproduction takes and what memory it needs, from a few images on this machine.

A training step and an evaluation are measured with noise images, random weights and a label space of the
right size, and multiplied up. The step is computed as a trainer does it, by the same memory plan.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from refiner_cli.bench.measure import synchronize
from refiner_cli.bench.train import random_images
from refiner_cli.config import CalibrationConfig, Config
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.device import autocast, pick_device, pick_precision
from refiner_cli.core.runtime.log import LogFn
from refiner_cli.core.towers.weights import RANDOM_WEIGHTS
from refiner_cli.data.labels import LabelSpace
from refiner_cli.training.calibrate import MAX_SCORES
from refiner_cli.training.candidates import composition_candidates
from refiner_cli.training.gradient_step import GradientStep
from refiner_cli.training.schedule import Schedule
from refiner_cli.training.setup import fitted_step, frozen_backbone, place_model

PROBE_IMAGES = 4
PROBE_PAIRS = 256


@dataclass(frozen=True)
class ImageCounts:
    """Images by split."""

    train: int
    val: int
    test: int


@dataclass(frozen=True)
class JobEstimate:
    """Of one training and its evaluation."""

    steps: int
    train_seconds: float
    evaluation_seconds: float  # validation while training, and the evaluation on test
    peak_bytes: int | None  # weights and a training step; None of a method without training

    @property
    def seconds(self) -> float:
        return self.train_seconds + self.evaluation_seconds

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "train_seconds": round(self.train_seconds, 1),
            "evaluation_seconds": round(self.evaluation_seconds, 1),
            "peak_bytes": self.peak_bytes,
        }


@dataclass(frozen=True)
class ScoringCost:
    """Seconds to encode an image, and to score it against one pair."""

    image: float
    pair: float

    def against(self, pairs: int) -> float:
        """Seconds of one image and so many pairs."""
        return self.image + pairs * self.pair


def estimate_job(config: Config, space: LabelSpace, counts: ImageCounts, log: LogFn) -> JobEstimate:
    """Measure with a few images and multiply up.

    Args:
        config: its weights do not matter, and are not fetched.
        space: states, objects and training pairs, made up or real.
    """
    device, _ = pick_device(config.device)
    precision, _ = pick_precision(config.precision, device)
    random_weights = config.model_copy(update={"pretrained": RANDOM_WEIGHTS})
    backbone = frozen_backbone(random_weights, device, precision, log)
    torch.manual_seed(0)
    model = build_model(config.method, backbone, config.model, space)
    place_model(model, config.train, len(space.pairs), device, precision, log)
    schedule = Schedule(config.train, counts.train, config.seed)
    steps, train, peak = 0, 0.0, None
    if model.trainable_parameters():
        step, plan = fitted_step(model, space, config.train, precision, log)
        steps, train = schedule.total, schedule.total * step_seconds(step)
        peak = plan.peak + sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    cost = measure_scoring(model.eval(), random_images(backbone, PROBE_IMAGES, device), space, precision)
    closed, wide = len(space.pairs), len(space.states) * len(space.objects)
    evaluation = schedule.validations(steps) * counts.val * cost.against(closed)
    evaluation += calibration_seconds(model, config.calibration, counts.val, cost, closed, wide)
    evaluation += counts.val * cost.against(wide)  # fitting feasibility
    evaluation += counts.test * cost.against(closed + wide)
    return JobEstimate(steps, train, evaluation, peak)


def calibration_seconds(
    model: Model, config: CalibrationConfig, images: int, cost: ScoringCost, closed: int, wide: int
) -> float:
    """Of the stage after training, which encodes every view once and scores the images by each setting.

    Args:
        images: of validation.
        closed, wide: pairs of both worlds.
    """
    tried = composition_candidates(model, config)
    settings = len({(one.tta_shifts, one.wise_ft_alpha) for one in tried})
    scored = sum(pairs * min(images, MAX_SCORES // pairs) for pairs in (closed, wide))
    return images * cost.image * max(one.tta_shifts for one in tried) + settings * scored * cost.pair


def seconds_of(model: Model, work: Callable[[], object]) -> float:
    """Seconds of the second call; the first warms up."""
    work()
    synchronize(model.device)
    began = time.perf_counter()
    work()
    synchronize(model.device)
    return time.perf_counter() - began


def step_seconds(step: GradientStep) -> float:
    """Seconds of a step of a whole batch. Text is encoded once a step, whatever the number of images."""
    model, batch = step.model, step.config.batch_size
    # A GPU computes a few images as slowly as many.
    count = min(batch, PROBE_IMAGES if model.device.type == "cpu" else step.micro_batch)
    images = random_images(model.backbone, count, model.device)
    truth = torch.arange(count, device=model.device) % len(step.space.pairs)

    def encode_text() -> None:
        with autocast(model.device, step.precision):
            bank = step.encode()
        parts = [t for t in (bank.pairs, bank.states, bank.objects) if t is not None and t.requires_grad]
        torch.autograd.backward([part.sum() for part in parts])

    model.train()
    text = seconds_of(model, encode_text)
    whole = seconds_of(model, lambda: step.backward(images, truth, 0))
    return text + max(0.0, whole - text) * batch / count


@torch.no_grad()
def measure_scoring(
    model: Model, images: torch.Tensor, space: LabelSpace, precision: torch.dtype
) -> ScoringCost:
    """Encode a few images and score them against a few pairs."""
    few = dataclasses.replace(space, pairs=space.pairs[:PROBE_PAIRS])
    with autocast(model.device, precision):
        bank = model.encode_pairs(few)
        vectors = model.encode_images_tta(images)
        image = seconds_of(model, lambda: model.encode_images_tta(images)) / len(images)
        score = seconds_of(model, lambda: model.score(vectors, bank)) / len(images)
    return ScoringCost(image, score / len(few.pairs))
