"""A training step: time and peak memory, and where the time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from refiner_cli.bench.measure import Peak, Result, seconds, wait
from refiner_cli.config import Config
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.device import attention_kernels, computing
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.core.towers.text_chunks import pick_chunk
from refiner_cli.data.labels import LabelSpace
from refiner_cli.training.gradient_step import MicroBatches, Tell


@dataclass(frozen=True)
class Machine:
    device: torch.device
    precision: torch.dtype
    rounds: int


def random_images(backbone: Backbone, count: int, device: torch.device) -> Tensor:
    """Preprocessed images of noise, ``count x 3 x H x W``."""
    size = backbone.spec.preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)


def bench_step(
    name: str, backbone: Backbone, space: LabelSpace, config: Config, machine: Machine, tell: Tell
) -> Iterator[Result]:
    """One optimizer step on random images of a label space."""
    device, B = machine.device, config.train.batch
    torch.manual_seed(0)
    model = build_model(config.method, backbone, config.model, space).to(device).train()
    model.recompute = config.train.grad_checkpoint
    context = len(backbone.text.tokens.split(config.model.context))
    size, why = pick_chunk(
        config.train.text_chunk, backbone.text, len(space.pairs), device, machine.precision, context
    )
    backbone.text.chunk = size
    tell(f"{name}: text chunks of {size} prompts ({why})")
    images = random_images(backbone, B, device)
    truth = torch.arange(B, device=device) % len(space.pairs)
    optimizer = torch.optim.AdamW(model.learned().values(), lr=1e-4)
    pieces = MicroBatches(
        model,
        space,
        config.train,
        machine.precision,
        encode=lambda: model.encode_pairs(space),
        scale=lambda loss: loss,
        tell=tell,
    )

    def step() -> None:
        pieces.backward(images, truth, 0)
        optimizer.step()

    peak = Peak(device)
    taken = seconds({"step": step}, device, rounds=machine.rounds)["step"]
    what = f"training step, {name}, {len(space.pairs)} pairs, batch {B}"
    yield Result(what, taken, "s")
    most = peak.read()
    if most is not None:
        yield Result(f"{what}: peak memory", most / 1e9, "GB")
    for part, value in breakdown(model, images, space, machine).items():
        yield Result(f"{what}: {part}", value, "s")


def breakdown(model: Model, images: Tensor, space: LabelSpace, machine: Machine) -> dict[str, float]:
    """Seconds of the four parts of a step, each on its own."""
    found: dict[str, float] = {}

    def timed(name: str, began: float) -> None:
        wait(machine.device)
        found[name] = time.perf_counter() - began

    with attention_kernels(machine.device):
        for name in ("text", "images"):
            wait(machine.device)
            began = time.perf_counter()
            with computing(machine.device, machine.precision):
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
