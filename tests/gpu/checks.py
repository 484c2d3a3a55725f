"""What has to hold on a GPU; every check also runs on the CPU, so that the checks themselves are tested."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from refiner_cli.config import Config, TrainConfig, method_section
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.device import autocast
from refiner_cli.core.runtime.distributed import SINGLE_PROCESS, DistributedContext
from refiner_cli.core.runtime.loader import ImageBatch
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.plugins import BUILT_IN_METHODS
from refiner_cli.training.gradient_step import GradientStep
from refiner_cli.training.memory_plan import plain_step
from refiner_cli.training.optimizer_step import OptimizerStep
from refiner_cli.training.schedule import Schedule
from tests.core.cases import SPACE

TRUTH = torch.tensor([0, 1, 2, 0])
WITHOUT_DROPOUT = {"primitive_dropout": 0, "adapter_dropout": 0, "disentangle_dropout": 0}
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class CheckFailedError(Exception):
    """Something differs; the message says by how much."""


def images() -> Tensor:
    """Four images of noise for the tiny backbone."""
    return torch.randn(len(TRUTH), 3, 96, 96, generator=torch.Generator().manual_seed(0))


def model_of(method: str) -> Model:
    """The same model each time, without dropout: devices draw different random numbers."""
    torch.manual_seed(0)
    section = method_section(method)
    fitting = {key: value for key, value in WITHOUT_DROPOUT.items() if key in section.model_fields}
    model = build_model(method, load_backbone("tiny", "built-in"), section(**fitting), SPACE)
    with torch.no_grad():  # away from the zeros that some parts start at
        for p in model.trainable_parameters().values():
            p.add_(0.02 * torch.randn_like(p))
    return model


def scores(model: Model, precision: torch.dtype = torch.float32) -> Tensor:
    """Combined scores, ``4 x P`` float32 on the CPU."""
    with torch.no_grad(), autocast(model.device, precision):
        bank = model.eval().encode_pairs(SPACE)
        found = model.score(model.encode_images_tta(images().to(model.device)), bank)
        return model.combine(found, SPACE).float().cpu()


def gradient_step(model: Model, batch: int, log: Callable[[str], None] = lambda _: None) -> GradientStep:
    return plain_step(model.train(), SPACE.training(), TrainConfig(batch_size=batch), torch.float32, log)


def gradients(model: Model) -> Tensor:
    """All of them in one vector on the CPU."""
    return torch.cat(
        [p.grad.flatten().cpu() for p in model.trainable_parameters().values() if p.grad is not None]
    )


def require(ok: bool, message: str) -> None:
    if not ok:
        raise CheckFailedError(message)


def relative(ours: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((ours - want).abs().max() / want.abs().max())


def equals_the_cpu(device: torch.device) -> dict[str, Any]:
    """Scores, loss and gradients of every method in float32."""
    found = {}
    for method in BUILT_IN_METHODS:
        here, there = model_of(method), model_of(method).to(device)
        found[f"{method} scores"] = relative(scores(there), scores(here))
        if here.trainable_parameters():
            for model in (here, there):
                gradient_step(model, 4).backward(images().to(model.device), TRUTH.to(model.device), 7)
            found[f"{method} gradients"] = relative(gradients(there), gradients(here))
    worst = max(found, key=found.__getitem__)
    require(found[worst] < 5e-3, f"{worst} differ from the CPU's by {found[worst]:.2g}")
    return found


def half_precision_is_close(device: torch.device) -> dict[str, Any]:
    """Scores in half precision beside float32, relative; the CPU has bf16 alone."""
    found = {}
    for name, precision in HALVES.items():
        if name == "fp16" and device.type == "cpu":
            continue
        for method in BUILT_IN_METHODS:
            model = model_of(method).to(device)
            found[f"{method} {name}"] = relative(scores(model, precision), scores(model))
    worst = max(found, key=found.__getitem__)
    require(found[worst] < 0.1, f"{worst} differs from float32 by {found[worst]:.2g}")
    return found


def loss_scaling_finds_its_scale(device: torch.device) -> dict[str, Any]:
    """fp16 starts with a scale that may overflow, and trains within a few steps."""
    model = model_of("refiner").to(device)
    precision = torch.float16 if device.type == "cuda" else torch.float32
    config = Config.model_validate({"train": {"batch_size": 4, "lr": 1e-3}})
    step = OptimizerStep(
        model, SPACE.training(), TRUTH, [Path()] * 4, Schedule(config.train, 4, 0), config, precision,
        SINGLE_PROCESS, lambda _: None,
    )  # fmt: skip
    batch = ImageBatch(images().to(device), torch.arange(4))
    outcomes = [step.run(batch, number, lambda: False) for number in range(12)]
    require(outcomes[-1].problem is None, f"the last step is still skipped: {outcomes[-1].problem}")
    require(outcomes[-1].loss < outcomes[0].loss, "the loss does not fall")
    return {
        "skipped": sum(o.problem is not None for o in outcomes),
        "loss": [round(o.loss, 3) for o in outcomes],
    }


def out_of_memory_is_survived(device: torch.device) -> dict[str, Any]:
    """A batch that does not fit is computed in pieces, with the gradients of the whole."""
    said: list[str] = []
    model = model_of("refiner").to(device)
    gradient_step(model, 4).backward(images().to(device), TRUTH.to(device), 7)
    want = gradients(model)
    step, encode = gradient_step(model, 4, said.append), model.encode_images

    def limited(pixels: Tensor) -> Any:
        if len(pixels) > 1:
            if device.type == "cuda":
                torch.empty(2**50, dtype=torch.uint8, device=device)  # more than any GPU has
            raise torch.OutOfMemoryError("simulated")
        return encode(pixels)

    with mock.patch.object(model, "encode_images", limited):
        step.backward(images().to(device), TRUTH.to(device), 7)
    require(step.micro_batch == 1, f"the pieces have {step.micro_batch} images")
    difference = relative(gradients(model), want)
    require(difference < 5e-3, f"the gradients differ by {difference:.2g}")
    return {"said": said, "difference": difference}


def two_ranks_equal_one(device: torch.device) -> dict[str, Any]:
    """Two processes on one device share a batch (Gloo: NCCL wants a GPU for each)."""
    model = model_of("refiner").to(device)
    gradient_step(model, 4).backward(images().to(device), TRUTH.to(device), 7)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        shares = pool.starmap(compute_share, [(rank, port, str(device)) for rank in (0, 1)], chunksize=1)
    require(torch.equal(*shares), "the two processes hold different gradients")
    difference = relative(shares[0], gradients(model))
    require(difference < 5e-3, f"their gradients differ from one process's by {difference:.2g}")
    return {"difference": difference}


def compute_share(rank: int, port: int, device: str) -> Tensor:
    """One of two processes: the summed gradients, on the CPU."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    ranks = DistributedContext(rank, 2)
    model = model_of("refiner").to(device)
    rows = ranks.shard_rows([0, 1, 2, 3])
    step = gradient_step(model, len(rows))
    loss, _ = step.backward(
        images()[rows].to(device), TRUTH[rows].to(device), 7, weight=ranks.shard_weight(4)
    )
    ranks.all_reduce(list(model.trainable_parameters().values()), loss, stop=False)
    dist.destroy_process_group()
    return gradients(model)


CHECKS: dict[str, Callable[[torch.device], dict[str, Any]]] = {
    check.__name__: check
    for check in (
        equals_the_cpu,
        half_precision_is_close,
        loss_scaling_finds_its_scale,
        out_of_memory_is_survived,
        two_ranks_equal_one,
    )
}
