"""The memory plan: measured on two and four images, and fitted to what is free."""

from __future__ import annotations

import pytest
import torch

from refiner_cli.config import TrainConfig, method_section
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.refiner import Refiner, RefinerConfig
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.plugins import BUILT_IN_METHODS
from refiner_cli.training import memory_plan
from refiner_cli.training.memory_plan import (
    MemoryPlan,
    fit_step,
    peak_of,
    plain_step,
    plan_memory,
    probe_memory,
)
from tests.core.cases import SPACE

CPU = torch.device("cpu")


@pytest.fixture
def model(tiny: Backbone) -> Refiner:
    return Refiner.build(tiny, RefinerConfig(), SPACE)


def probe_of(model: Model) -> memory_plan.Probe:
    step = plain_step(model, SPACE.training(), TrainConfig(), torch.float32, lambda line: None)
    return lambda images: step.backward(images, torch.zeros(len(images), dtype=torch.int64), 0)


def plan(monkeypatch: pytest.MonkeyPatch, model: Model, free: int, **settings: object) -> MemoryPlan:
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: free)
    image = torch.zeros(1, 3, *model.backbone.image_size)
    config = TrainConfig.model_validate({"batch_size": 32, **settings})
    return plan_memory(model, probe_of(model), image, config)


def test_two_small_steps_tell_the_peak_of_a_larger_one(model: Refiner) -> None:
    image, probe = torch.zeros(1, 3, *model.backbone.image_size), probe_of(model.train())
    step = probe_memory(probe, image)
    assert peak_of(probe, image.expand(12, -1, -1, -1)) == pytest.approx(step.peak(12), rel=0.05)


def test_less_memory_first_makes_pieces_then_recomputes(
    monkeypatch: pytest.MonkeyPatch, model: Refiner
) -> None:
    ample = plan(monkeypatch, model, 2**40)
    assert (ample.micro_batch, ample.gradient_checkpointing) == (32, False)
    assert "all 32 images at once, activations kept" in ample.reason
    assert all(p.grad is None for p in model.trainable_parameters().values())
    half = plan(monkeypatch, model, round(ample.peak * 0.6))
    assert 8 <= half.micro_batch < 32
    assert not half.gradient_checkpointing
    assert half.peak <= 0.6 * ample.peak
    least = plan(monkeypatch, model, round(ample.peak * 0.25))
    assert least.gradient_checkpointing
    assert least.peak < half.peak
    assert "activations recomputed" in least.reason


def test_what_is_requested_is_kept(monkeypatch: pytest.MonkeyPatch, model: Refiner) -> None:
    found = plan(monkeypatch, model, 0, micro_batch=6, gradient_checkpointing="off")
    assert (found.micro_batch, found.gradient_checkpointing) == (6, False)
    assert plan(monkeypatch, model, 2**40, gradient_checkpointing="on").gradient_checkpointing


def test_the_plan_is_logged_and_followed(monkeypatch: pytest.MonkeyPatch, model: Refiner) -> None:
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: 0)
    said: list[str] = []
    image = torch.zeros(1, 3, *model.backbone.image_size)
    found = fit_step(model, SPACE.training(), TrainConfig(), torch.float32, image, said.append)
    assert found.micro_batch == 1
    assert model.memory.gradient_checkpointing
    assert said[-1].startswith("memory: 1 of 64 images at once, activations recomputed: a step takes about")


@pytest.mark.parametrize("method", [m for m in BUILT_IN_METHODS if m != "clip"])
def test_measuring_changes_no_state_of_a_model(
    monkeypatch: pytest.MonkeyPatch, tiny: Backbone, method: str
) -> None:
    model = build_model(method, tiny, method_section(method)(), SPACE)
    before = {name: value.clone() for name, value in (model.state_dict() | model.saved_tensors()).items()}
    plan(monkeypatch, model, 0)
    after = model.state_dict() | model.saved_tensors()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
