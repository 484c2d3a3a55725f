"""How long a reproduction takes and what memory it needs, from a few images on this machine.

A training step and an evaluation are measured with noise images, random weights and a label space of the
right size, and multiplied up. Text is encoded once per step whatever the number of images, so it is
measured on its own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from refiner_cli.bench.measure import Peak, synchronize
from refiner_cli.bench.train import random_images
from refiner_cli.config import Config
from refiner_cli.core.models.base import MemoryOptions, Model
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.device import autocast, pick_device, pick_precision
from refiner_cli.core.runtime.log import LogFn
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.core.towers.text_chunks import pick_chunk_size
from refiner_cli.data.labels import LabelSpace
from refiner_cli.training.gradient_step import GradientStep
from refiner_cli.training.schedule import Schedule

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
    peak_bytes: int | None  # of a training step; None where the system does not report it

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


def estimate_job(
    config: Config, backbone: Backbone, space: LabelSpace, counts: ImageCounts, log: LogFn
) -> JobEstimate:
    """Measure with a few images and multiply up.

    Args:
        backbone: on its device; its weights do not matter.
        space: states, objects and training pairs, made up or real.
    """
    device, _ = pick_device(config.device)
    precision, _ = pick_precision(config.precision, device)
    torch.manual_seed(0)
    model = build_model(config.method, backbone, config.model, space).to(device)
    words = len(backbone.text.tokens.encode(getattr(config.model, "prompt_init", "")))
    chunk_size, _ = pick_chunk_size(
        config.train.text_chunk_size, backbone.text, len(space.pairs), device, precision, words
    )
    model.memory = MemoryOptions(chunk_size, config.train.gradient_checkpointing == "on")
    images = random_images(backbone, PROBE_IMAGES, device)
    steps, train, peak = 0, 0.0, None
    if model.trainable_parameters():
        schedule = Schedule(config.train, counts.train, config.seed)
        each, peak = measure_step(model.train(), images, space, config, precision, log)
        steps, train = schedule.total, each * schedule.total
    validations = 1 + -(-config.train.epochs // config.train.eval_every) * bool(steps)
    image, pair = measure_scoring(model.eval(), images, space, precision)
    open_pairs = len(space.states) * len(space.objects)
    evaluation = validations * counts.val * (image + pair * len(space.pairs))
    evaluation += counts.test * (image + pair * (len(space.pairs) + open_pairs))
    evaluation += counts.val * (image + pair * open_pairs)  # fitting feasibility
    return JobEstimate(steps, train, evaluation, peak)


def seconds_of(model: Model, work: Callable[[], object]) -> float:
    """Seconds of the second call; the first warms up."""
    work()
    synchronize(model.device)
    began = time.perf_counter()
    work()
    synchronize(model.device)
    return time.perf_counter() - began


def measure_step(
    model: Model, images: torch.Tensor, space: LabelSpace, config: Config, precision: torch.dtype, log: LogFn
) -> tuple[float, int | None]:
    """Seconds and peak bytes of one step with the configured batch."""

    def encode_text() -> None:
        with autocast(model.device, precision):
            bank = model.encode_pairs(space)
        parts = [t for t in (bank.pairs, bank.states, bank.objects) if t is not None and t.requires_grad]
        torch.autograd.backward([part.sum() for part in parts])

    gradient_step = GradientStep(
        model, space, config.train, precision,
        encode=lambda: model.encode_pairs(space), scale=lambda loss: loss, log=log,
    )  # fmt: skip
    truth = torch.arange(len(images), device=model.device) % len(space.pairs)
    peak = Peak(model.device)
    text = seconds_of(model, encode_text)
    with_text = peak.read()
    peak = Peak(model.device)
    before = peak.read()
    whole = seconds_of(model, lambda: gradient_step.backward(images, truth, 0))
    with_images = peak.read()
    factor = config.train.batch_size / len(images)
    seconds = text + max(0.0, whole - text) * factor
    if with_text is None or with_images is None or before is None:
        return seconds, None
    return seconds, int(with_text + max(0, with_images - before) * factor)


@torch.no_grad()
def measure_scoring(
    model: Model, images: torch.Tensor, space: LabelSpace, precision: torch.dtype
) -> tuple[float, float]:
    """Seconds to encode an image, and to score it against one pair."""
    few = dataclasses.replace(space, pairs=space.pairs[:PROBE_PAIRS])
    with autocast(model.device, precision):
        bank = model.encode_pairs(few)
        vectors = model.encode_images_tta(images)
        image = seconds_of(model, lambda: model.encode_images_tta(images)) / len(images)
        score = seconds_of(model, lambda: model.score(vectors, bank)) / len(images)
    return image, score / len(few.pairs)
