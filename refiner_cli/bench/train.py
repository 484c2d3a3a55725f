"""A training step: time, peak memory, and the time of its parts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from refiner_cli.bench.measure import BenchResult, Peak, median_seconds, synchronize
from refiner_cli.config import Config
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.device import attention_kernels, autocast
from refiner_cli.core.runtime.log import LogFn
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.data.labels import LabelSpace
from refiner_cli.training.setup import fitted_step, place_model


@dataclass(frozen=True)
class BenchMachine:
    """What to compute on, and how often to repeat a measurement."""

    device: torch.device
    precision: torch.dtype
    rounds: int


def random_images(backbone: Backbone, count: int, device: torch.device) -> Tensor:
    """Preprocessed images of noise, ``count x 3 x H x W``."""
    chance = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *backbone.image_size, generator=chance).to(device)


def bench_step(
    name: str, backbone: Backbone, space: LabelSpace, config: Config, machine: BenchMachine, log: LogFn
) -> Iterator[BenchResult]:
    """One optimizer step on random images of a label space; nothing for a method that trains nothing."""
    device, B = machine.device, config.train.batch_size
    torch.manual_seed(0)
    model = build_model(config.method, backbone, config.model, space)
    if not model.trainable_parameters():
        log(f"{name}: the method {config.method} trains nothing")
        return

    def note(line: str) -> None:
        log(f"{name}: {line}")

    place_model(model, config.train, len(space.pairs), device, machine.precision, note)
    gradient_step, _ = fitted_step(model, space, config.train, machine.precision, note)
    images = random_images(backbone, B, device)
    truth = torch.arange(B, device=device) % len(space.pairs)
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=1e-4)

    def step() -> None:
        gradient_step.backward(images, truth, 0)
        optimizer.step()

    peak = Peak(device)
    taken = median_seconds({"step": step}, device, rounds=machine.rounds)["step"]
    what = f"training step, {name}, {len(space.pairs)} pairs, batch {B}"
    yield BenchResult(what, taken, "s")
    most = peak.read()
    if most is not None:
        yield BenchResult(f"{what}: peak memory", most / 1e9, "GB")
    for part, value in breakdown(model, images, space, machine).items():
        yield BenchResult(f"{what}: {part}", value, "s")


def breakdown(model: Model, images: Tensor, space: LabelSpace, machine: BenchMachine) -> dict[str, float]:
    """Seconds of the four parts of a step, measured separately."""
    found: dict[str, float] = {}

    def timed(name: str, began: float) -> None:
        synchronize(machine.device)
        found[name] = time.perf_counter() - began

    with attention_kernels(machine.device):
        for name in ("text", "images"):
            synchronize(machine.device)
            began = time.perf_counter()
            with autocast(machine.device, machine.precision):
                if name == "text":
                    out = model.encode_pairs(space).pairs
                else:
                    out = model.encode_images(images).composition
            timed(f"{name} forward", began)
            if out.requires_grad:
                began = time.perf_counter()
                out.sum().backward()
                timed(f"{name} backward", began)
    return found
