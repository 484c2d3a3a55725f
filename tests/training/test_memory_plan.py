"""The memory plan: measured on two and four images, and fitted to what is free."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from refiner_cli.bench.spaces import SpaceSize, made_up_space
from refiner_cli.config import TrainConfig, method_section
from refiner_cli.core.models.base import MemoryOptions, Model
from refiner_cli.core.models.refiner import Refiner, RefinerConfig
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.distributed import DistributedContext
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.data.labels import LabelSpace
from refiner_cli.plugins import BUILT_IN_METHODS
from refiner_cli.training import memory_plan
from refiner_cli.training.gradient_step import GradientStep
from refiner_cli.training.memory_plan import (
    MemoryPlan,
    fit_step,
    memory_left,
    peaks_of,
    plain_step,
    plan_memory,
    probe_memory,
)
from refiner_cli.training.state import TrainProgress, restore_sizes
from tests.core.cases import SPACE

CPU = torch.device("cpu")
RETURNED = """
import torch
from refiner_cli.bench.measure import Peak
from refiner_cli.core.runtime.memory import return_freed_memory

assert return_freed_memory()
torch.ones(7 * 2**20)  # freed: from now on glibc would keep memory up to this size
before = Peak(torch.device("cpu")).read()
tensors = [torch.ones(2**20) for _ in range(64)]  # of 4 MiB
del tensors[::2]
peak = Peak(torch.device("cpu"))
print((peak.read() - before) / 2**20)
"""


@pytest.fixture(autouse=True)
def asked_back(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """How often freed memory was asked back; for this process nothing changes."""
    asked: list[bool] = []

    def ask() -> bool:
        asked.append(True)
        return True

    monkeypatch.setattr(memory_plan, "return_freed_memory", ask)
    return asked


@pytest.fixture
def model(tiny: Backbone) -> Refiner:
    return Refiner.build(tiny, RefinerConfig(), SPACE)


def step_of(model: Model, config: TrainConfig, space: LabelSpace = SPACE) -> GradientStep:
    return plain_step(model.train(), space.training(), config, torch.float32, lambda line: None)


def plan(monkeypatch: pytest.MonkeyPatch, model: Model, free: int, **settings: object) -> MemoryPlan:
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: free)
    image = torch.zeros(1, 3, *model.backbone.image_size)
    config = TrainConfig.model_validate({"batch_size": 32, **settings})
    return plan_memory(step_of(model, config), image)


def test_two_small_steps_tell_the_peak_of_a_larger_one(model: Refiner) -> None:
    image, step = torch.zeros(1, 3, *model.backbone.image_size), step_of(model, TrainConfig())
    memory = probe_memory(step, image)
    assert max(peaks_of(step, image.expand(12, -1, -1, -1))) == pytest.approx(memory.peak(12), rel=0.05)


def test_much_text_does_not_hide_the_images(tiny: Backbone) -> None:
    space = made_up_space(SpaceSize(30, 30, 800))
    model = Refiner.build(tiny, RefinerConfig(), space)
    # A chunk's activations come and go before the images' and again after them.
    model.memory = MemoryOptions(text_chunk_size=400)
    image, step = torch.zeros(1, 3, *tiny.image_size), step_of(model, TrainConfig(), space)
    few, many = (image.expand(count, -1, -1, -1) for count in (4, 16))
    text, of_images = peaks_of(step, few)
    assert text > of_images
    memory = probe_memory(step, image)
    assert memory.peak(4) == pytest.approx(text, rel=0.05)
    assert max(peaks_of(step, many)) == pytest.approx(memory.peak(16), rel=0.05)
    assert memory.peak(16) > 1.2 * text


def allocated(step: Callable[[], object]) -> int:
    """Peak bytes that PyTorch's own allocator hands out during a step, kernels' own buffers included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(change for _, change in changes))


@pytest.mark.parametrize(("batch", "pieces", "recompute"), [(8, 1, "off"), (12, 1, "on"), (16, 4, "on")])
def test_the_plan_is_what_the_allocator_hands_out(
    monkeypatch: pytest.MonkeyPatch, model: Refiner, batch: int, pieces: int, recompute: str
) -> None:
    found = plan(
        monkeypatch, model, 2**40,
        batch_size=batch, micro_batch=batch // pieces, gradient_checkpointing=recompute,
    )  # fmt: skip
    step = plain_step(model, SPACE.training(), TrainConfig(), torch.float32, lambda line: None)
    step.micro_batch = found.micro_batch
    optimizer = torch.optim.AdamW(model.trainable_parameters().values())

    def train() -> None:
        images = torch.zeros(batch, 3, *model.backbone.image_size)
        for _ in range(2):
            step.backward(images, torch.zeros(batch, dtype=torch.int64), 0)
            optimizer.step()

    assert found.peak == pytest.approx(allocated(train), rel=0.1)


def test_where_kept_memory_would_not_fit_it_is_asked_back(
    monkeypatch: pytest.MonkeyPatch, model: Refiner, asked_back: list[bool]
) -> None:
    ample = plan(monkeypatch, model, 2**40)
    assert not asked_back
    scarce = plan(monkeypatch, model, round(2 * ample.peak))
    assert asked_back
    assert (scarce.micro_batch, scarce.gradient_checkpointing) == (32, False)
    assert scarce.reason.endswith("; freed memory goes back to the system at once")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_tensors_leave_the_process_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", RETURNED], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(128, abs=16)


def test_memory_may_be_planned_for_another_device(monkeypatch: pytest.MonkeyPatch, model: Refiner) -> None:
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    ample = plan(monkeypatch, model, 0, memory_gb=64)
    assert (ample.micro_batch, ample.gradient_checkpointing) == (32, False)
    tight = plan(monkeypatch, model, 2**40, memory_gb=(weights + 0.6 * ample.peak) / 1e9)
    assert tight.micro_batch < 32
    assert plan(monkeypatch, model, 2**40, memory_gb=1e-6).micro_batch == 1


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


def test_a_process_plans_for_its_share_of_a_batch(monkeypatch: pytest.MonkeyPatch, model: Refiner) -> None:
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: 2**40)
    image, said = torch.zeros(1, 3, *model.backbone.image_size), []
    found = fit_step(
        model, SPACE.training(), TrainConfig(), torch.float32, image, said.append, DistributedContext(1, 6)
    )
    assert found.micro_batch == 11  # rows 1, 7, .. 61 of 64
    assert "all 11 images at once" in said[-1]


@pytest.mark.parametrize(
    ("ranks", "settings", "images"),
    [
        (DistributedContext(), {}, None),
        (DistributedContext(1, 2), {}, 3),
        (DistributedContext(), {"micro_batch": 2}, 2),
    ],
)
def test_a_plan_that_changes_what_batch_normalisation_sees_says_so(
    monkeypatch: pytest.MonkeyPatch,
    tiny: Backbone,
    ranks: DistributedContext,
    settings: dict[str, int],
    images: int | None,
) -> None:
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: 2**40)
    image, config = torch.zeros(1, 3, *tiny.image_size), TrainConfig(batch_size=6, **settings)
    for method, noted in {"troika": images, "refiner": None}.items():
        model, said = build_model(method, tiny, method_section(method)(), SPACE), []
        fit_step(model, SPACE.training(), config, torch.float32, image, said.append, ranks)
        assert said[0].startswith("memory:")
        wanted = [f"mean and variance of {noted} images, not of the batch of 6"] if noted else []
        assert [text in line for text, line in zip(wanted, said[1:], strict=True)] == [True] * len(wanted)


def test_batch_normalisation_recomputes_before_it_takes_fewer_images(
    monkeypatch: pytest.MonkeyPatch, tiny: Backbone
) -> None:
    model = build_model("troika", tiny, method_section("troika")(), SPACE)
    kept = plan(monkeypatch, model, 2**40)
    found = plan(monkeypatch, model, round(0.95 * kept.peak / memory_plan.BUDGET))
    assert (found.micro_batch, found.gradient_checkpointing) == (32, True)


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


@pytest.mark.parametrize(
    ("planned", "before", "share", "used", "says"),
    [
        ((32, 9), (32, 9), 32, (32, 9), ""),
        ((32, 9), (8, 4), 32, (8, 4), "8 images and 4 prompts at once, as before"),
        ((8, 9), (32, 9), 32, (8, 9), "more do not fit now; before it was interrupted it computed 32 and 9"),
        ((16, 9), (32, 9), 16, (16, 9), ""),  # more processes share a batch
    ],
)
def test_a_resumed_training_computes_as_many_at_once_as_before_or_says_why_not(
    model: Refiner,
    planned: tuple[int, int],
    before: tuple[int, int],
    share: int,
    used: tuple[int, int],
    says: str,
) -> None:
    said: list[str] = []
    step = plain_step(model, SPACE.training(), TrainConfig(batch_size=32), torch.float32, said.append)
    step.micro_batch, model.memory = planned[0], MemoryOptions(text_chunk_size=planned[1])
    restore_sizes(step, TrainProgress(micro_batch=before[0], text_chunk_size=before[1]), share)
    assert (step.micro_batch, model.memory.text_chunk_size) == used
    assert [says in line for line in said] == ([True] if says else [])


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch, model: Refiner) -> None:
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: 900)
    beside, alone = DistributedContext(1, 6, 1, 3), DistributedContext(1, 6, 0, 1)
    assert [memory_left(model, TrainConfig(), ranks) for ranks in (beside, alone)] == [300, 900]
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    given = TrainConfig(memory_gb=3 * (weights + 500) / 1e9)
    assert memory_left(model, given, beside) == pytest.approx(500, abs=1)
    monkeypatch.setattr(Refiner, "device", torch.device("cuda", 1))  # one each
    assert memory_left(model, TrainConfig(), beside) == 900
