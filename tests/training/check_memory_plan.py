"""Run by hand: ``python -m tests.training.check_memory_plan``.

Compares the memory that a plan expects of a training step with the measured peak of this process, for three
shapes of backbone, batch and recomputation, each in a process of its own; and prints the plan of a large
training within 24 GB. Minutes on a CPU; exits with 1 where a plan is more than 15 % off.
"""

from __future__ import annotations

import subprocess
import sys

import torch

from refiner_cli.bench.measure import Peak
from refiner_cli.bench.spaces import label_space
from refiner_cli.bench.train import random_images
from refiner_cli.config import TrainConfig, method_section
from refiner_cli.core.models.base import MemoryOptions
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.training import memory_plan

TOLERANCE = 0.15
SHAPES = {  # backbone, images of a batch, recomputation
    "ViT-B-32, 32 images": ("ViT-B-32", 32, "off"),
    "ViT-B-16, 16 images": ("ViT-B-16", 16, "off"),
    "ViT-B-16, 48 images, recomputed": ("ViT-B-16", 48, "on"),
}
CPU = torch.device("cpu")


def compare(name: str) -> bool:
    """Whether the plan of a shape is within the tolerance of the measured peak."""
    backbone_name, batch, checkpointing = SHAPES[name]
    torch.set_num_threads(1)
    backbone, space = load_backbone(backbone_name, "none"), label_space("ut-zappos")
    config = TrainConfig(batch_size=batch, micro_batch=batch, gradient_checkpointing=checkpointing)
    model = build_model("refiner", backbone, method_section("refiner")(), space)
    model.memory = MemoryOptions(len(space.pairs))
    step = memory_plan.plain_step(model, space, config, torch.float32, sys.stderr.write)
    images = random_images(backbone, batch, CPU)

    def run(pixels: torch.Tensor) -> None:
        step.backward(pixels, torch.zeros(len(pixels), dtype=torch.int64), 0)

    plan = memory_plan.plan_memory(model, run, images[:1], config)
    resident = Peak(CPU)
    held = resident.read() or 0
    run(images)
    torch.optim.AdamW(model.trainable_parameters().values()).step()
    measured = (resident.read() or 0) - held
    ratio = plan.peak / measured
    sys.stdout.write(
        f"{name}: planned {plan.peak / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB, ratio {ratio:.3f}\n"
    )
    return abs(ratio - 1) <= TOLERANCE


def plan_for(gigabytes: int) -> bool:
    """The plan of ViT-L/14 with 24 adapted blocks, 64 images in bf16, within a GPU's memory."""
    backbone, space = load_backbone("ViT-L-14", "none"), label_space("mit-states")
    config = TrainConfig(batch_size=64)
    model = build_model("refiner", backbone, method_section("refiner")(), space)
    model.memory = MemoryOptions(len(space.pairs))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    memory_plan.free_memory = lambda device: int(gigabytes * 1e9) - weights  # type: ignore[assignment]
    images = random_images(backbone, 1, CPU)
    lines: list[str] = []
    memory_plan.fit_step(model, space, config, torch.bfloat16, images, lines.append)
    sys.stdout.write(
        f"ViT-L-14, {len(model.adapters)} adapted blocks, 64 images, bf16, {gigabytes} GB: {lines[-1]}\n"
    )
    return True


def main() -> None:
    if len(sys.argv) > 1:
        name = sys.argv[1]
        sys.exit(0 if (compare(name) if name in SHAPES else plan_for(int(name))) else 1)
    codes = [
        subprocess.run([sys.executable, "-m", __spec__.name, name], check=False).returncode
        for name in [*SHAPES, "24"]
    ]
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
