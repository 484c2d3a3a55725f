"""Optimizer, schedule and selection as published methods use them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from refiner_cli.config import TrainConfig, method_section
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.device import RuntimeOptions
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.evaluation.scoring import evaluate_worlds, no_progress
from refiner_cli.training.optimizer import build_optimizer
from refiner_cli.training.schedule import Schedule
from refiner_cli.training.validation_loss import measure_plain
from tests.conftest import Cli
from tests.core.cases import SPACE


def test_the_rate_falls_in_steps_as_torchs_step_schedule() -> None:
    config = TrainConfig(epochs=12, batch_size=4, lr=1e-3, schedule="step", warmup=0)
    ours = Schedule(config, 10, 0)  # three steps an epoch
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)
    for step in range(ours.total):
        assert ours.learning_rate(step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step % 3 == 2:
            theirs.step()


def test_a_constant_rate_is_warmed_up_if_told_so() -> None:
    plain = Schedule(TrainConfig(lr=1e-3, schedule="constant", warmup=0, max_steps=10), 640, 0)
    warm = Schedule(TrainConfig(lr=1e-3, schedule="constant", warmup=0.2, max_steps=10), 640, 0)
    assert {plain.learning_rate(step) for step in range(10)} == {1e-3}
    assert [warm.learning_rate(step) for step in range(3)] == [5e-4, 1e-3, 1e-3]


def test_adam_decays_every_parameter_through_its_gradient(tiny: Backbone) -> None:
    torch.manual_seed(0)
    model = build_model("troika", tiny, method_section("troika")(), SPACE)
    config = TrainConfig(optimizer="adam", lr=1e-2, weight_decay=0.1)
    optimizer = build_optimizer(model, config)
    assert optimizer is not None
    amount = model.trainable_parameters()["amount"]
    before = amount.detach().clone()
    amount.grad = torch.full_like(amount, 0.3)
    optimizer.step()
    gradient = 0.3 + 0.1 * before  # Adam's first step: the gradient over its own size
    assert torch.allclose(amount, before - 1e-2 * gradient / (gradient.abs() + 1e-8))


def test_the_validation_loss_is_the_mean_over_images(
    tiny: Backbone, small_demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    benchmark = load_benchmark(small_demo)
    model = build_model("clip", tiny, method_section("clip")(), benchmark.vocabulary)
    train, encoded = TrainConfig(selection="loss"), list[int]()
    encode = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda x: encoded.append(len(x)) or encode(x))
    losses = {}
    for size in (7, 64):
        encoded.clear()
        options = RuntimeOptions(batch_size=size)
        metrics, losses[size] = measure_plain(model, benchmark, options, train, no_progress)
        assert sum(encoded) == len(benchmark.samples["val"])  # each image once, for both
    space = benchmark.label_space("val")
    assert metrics == evaluate_worlds(model, benchmark, "val", {"closed": space}, options)["closed"]
    assert losses[7] == pytest.approx(losses[64], rel=1e-5)
    assert losses[64] is not None
    assert 0 < losses[64] < 3 * torch.tensor(float(len(space.pairs))).log()
    assert measure_plain(model, benchmark, options, TrainConfig(), no_progress) == (metrics, None)


def test_training_selects_by_the_validation_loss(cli: Cli, small_demo: Path, tmp_path: Path) -> None:
    more = ("--set", "train.selection=loss", "--set", "train.batch_size=500", "--set", "train.epochs=2")
    done = cli("train", small_demo, "--backbone", "tiny", "--method", "coop", "--out", tmp_path / "run",
               "--json", *more)  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["criterion"] == "validation loss"
    assert done.json["best_step"] > 0
    assert "Validation has no" not in done.err  # AUC is defined, too
    assert "memory: all 134 images at once" in done.err  # there are no more
