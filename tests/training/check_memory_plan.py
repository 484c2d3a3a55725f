"""Run by hand: ``python -m tests.training.check_memory_plan [SHAPE ...]``.

Compares the memory that a plan expects of a training step with what a step takes, for shapes of backbone,
batch, recomputation and micro-batches: the bytes of tensors, and what the process takes where freed memory
goes back at once. Then plans the three benchmarks for a GPU with 24 GB, on a pretended one where there is
none. Each in a process of its own, some ten minutes on a CPU; exits with 1 where a plan is more than 15 %
off.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from refiner_cli.bench.measure import Peak
from refiner_cli.bench.spaces import SPACE_SIZES, label_space
from refiner_cli.bench.train import random_images
from refiner_cli.config import Config, TrainConfig, method_section
from refiner_cli.core.models.base import MemoryOptions
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.memory import return_freed_memory
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.core.towers.half import cast_frozen
from refiner_cli.recipes import recipe_text
from refiner_cli.training import memory_plan, setup
from tests.core.fake_cuda import CUDA, driver_environment, pretended_cuda

TOLERANCE = 0.15
GIGABYTES = 24
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shape:
    """A training step."""

    backbone: str
    batch: int
    micro_batch: int
    gradient_checkpointing: Literal["on", "off"]


SHAPES = {
    "B/32 kept": Shape("ViT-B-32", 32, 32, "off"),
    "B/16 pieces": Shape("ViT-B-16", 16, 8, "off"),
    "B/16 recomputed": Shape("ViT-B-16", 48, 48, "on"),
    "L/14 recomputed": Shape("ViT-L-14", 4, 2, "on"),
}


def compare(shape: Shape) -> bool:
    """Whether the plan of a shape is within the tolerance of both measured peaks."""
    torch.set_num_threads(1)
    backbone, space = load_backbone(shape.backbone, "none"), label_space("ut-zappos")
    config = TrainConfig(
        batch_size=shape.batch, micro_batch=shape.micro_batch,
        gradient_checkpointing=shape.gradient_checkpointing,
    )  # fmt: skip
    model = build_model("refiner", backbone, method_section("refiner")(), space)
    model.memory = MemoryOptions(len(space.pairs))
    return_freed_memory()
    step, plan = setup.fitted_step(model, space, config, torch.float32, lambda line: None)
    parameters = model.trainable_parameters().values()
    optimizer = torch.optim.AdamW(parameters)

    def train() -> None:
        images = random_images(backbone, shape.batch, CPU)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # makes its moments: a second step takes more than the first
        step.backward(images, torch.zeros(shape.batch, dtype=torch.int64), 0)
        optimizer.step()

    return_freed_memory()  # what the plan's own steps left
    resident = Peak(CPU)
    held = resident.read() or 0
    with memory_plan.LivePeak() as tensors:
        train()
    taken = (resident.read() or 0) - held
    ratios = plan.peak / tensors.peak, plan.peak / taken
    sys.stdout.write(
        f"{shape}: planned {plan.peak / 1e9:.3f} GB; tensors {tensors.peak / 1e9:.3f} GB, "
        f"ratio {ratios[0]:.3f}; process {taken / 1e9:.3f} GB, ratio {ratios[1]:.3f}\n"
    )
    return all(abs(ratio - 1) <= TOLERANCE for ratio in ratios)


def plan_benchmark(name: str) -> bool:
    """Print the plan of a benchmark's recipe on a GPU: the default backbone in bf16."""
    plain = F.scaled_dot_product_attention

    def attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False,
    ) -> Tensor:  # fmt: skip
        """As a GPU computes it without a mask; the pretended one does not choose a kernel."""
        if attn_mask is not None or is_causal or q.dtype == torch.float32:
            return plain(q, k, v, attn_mask, dropout_p, is_causal)
        attended: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
        return attended

    config = Config.model_validate(tomllib.loads(recipe_text(name)))
    space, train = label_space(name), config.train.model_copy(update={"memory_gb": GIGABYTES})
    backbone = cast_frozen(load_backbone(config.backbone, "none"), torch.bfloat16)
    model = build_model(config.method, backbone, config.model, space)
    lines: list[str] = []
    with (
        pretended_cuda(),
        mock.patch.object(F, "scaled_dot_product_attention", attention),
        mock.patch.object(memory_plan, "peak_meter", side_effect=lambda _: memory_plan.LivePeak()),
        mock.patch.object(memory_plan, "release_memory"),
    ):
        setup.place_model(model, train, len(space.pairs), CUDA, torch.bfloat16, lines.append)
        _, plan = setup.fitted_step(model, space, train, torch.bfloat16, lines.append)
    adapted = len(model.adapters)  # type: ignore[arg-type]
    sys.stdout.write("\n  ".join([f"{name}: {config.backbone}, {adapted} adapted blocks", *lines]) + "\n")
    return plan.peak < GIGABYTES * 1e9


def main(names: list[str]) -> int:
    if len(names) == 1:
        return int(not (compare(SHAPES[names[0]]) if names[0] in SHAPES else plan_benchmark(names[0])))
    codes = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or [*SHAPES, *SPACE_SIZES]:
            environment = os.environ | (driver_environment(Path(folder)) if name in SPACE_SIZES else {})
            command = [sys.executable, "-m", "tests.training.check_memory_plan", name]
            codes.append(subprocess.run(command, check=False, env=environment).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
