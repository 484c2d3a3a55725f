"""A batch in pieces has the gradients of the whole; running out of memory makes the pieces smaller."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from refiner_cli.config import TrainConfig, method_section
from refiner_cli.core.models.base import ImageVectors, MemoryOptions, Model, Scores, TextBank
from refiner_cli.core.models.refiner import RefinerConfig
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import RefinerError
from refiner_cli.plugins import BUILT_IN_METHODS
from refiner_cli.training.gradient_step import GradientStep, batch_norm_note
from refiner_cli.training.memory_plan import plain_step
from tests.core.towers import check_paths

PAIRS = [("wet", "dog"), ("wet", "cat"), ("old", "dog"), ("old", "car")]
SPACE = LabelSpace.from_pairs(PAIRS, PAIRS)


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    config = RefinerConfig(adapter_blocks=1)
    return build_model("refiner", load_backbone("tiny", "none"), config, SPACE).train()


def pieces(model: Model, log: Callable[[str], None] = lambda line: None, **more: object) -> GradientStep:
    config = TrainConfig(batch_size=6, label_smoothing=0.1, **more)  # type: ignore[arg-type]
    return plain_step(model, SPACE, config, torch.float32, log)


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(6, 3, 96, 96), torch.tensor([0, 1, 2, 3, 1, 0])


def gradients(model: Model) -> list[Tensor]:
    return [p.grad for p in model.trainable_parameters().values() if p.grad is not None]


def same(found: list[Tensor], want: list[Tensor]) -> bool:
    """Up to rounding, which follows a tensor's largest entries."""
    return len(found) == len(want) and all(
        torch.allclose(g, w, rtol=1e-4, atol=1e-5 * float(w.abs().max()) + 1e-8)
        for g, w in zip(found, want, strict=True)
    )


def out_of_memory_above(model: Model, monkeypatch: pytest.MonkeyPatch, most: int, error: Exception) -> None:
    """Let the model run out of memory with more than ``most`` images, in the middle of a step."""
    encode = model.encode_images

    def small_only(images: Tensor) -> ImageVectors:
        if len(images) > most:
            raise error
        return encode(images)

    monkeypatch.setattr(model, "encode_images", small_only)


def test_the_gradients_are_those_of_the_plain_loss(model: Model) -> None:
    images, truth = batch()
    machine = pieces(model)
    torch.manual_seed(7)
    loss = model.loss(
        model.score(model.encode_images(images), model.encode_pairs(SPACE)), truth, SPACE, machine.config
    )
    model.zero_grad()
    loss.backward()
    want = [grad.clone() for grad in gradients(model)]
    for size in (6, 4, 1):
        machine.micro_batch = size
        assert machine.backward(images, truth, 7)[0].item() == pytest.approx(loss.item(), rel=1e-6)
        assert same(gradients(model), want)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("MPS backend out of memory (...)")]
)
def test_out_of_memory_halves_the_pieces_says_so_and_goes_on(
    model: Model, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    images, truth = batch()
    whole, _ = pieces(model).backward(images, truth, 7)
    want = [grad.clone() for grad in gradients(model)]
    out_of_memory_above(model, monkeypatch, 2, error)
    said: list[str] = []
    machine = pieces(model, said.append)
    assert machine.backward(images, truth, 7)[0].item() == pytest.approx(whole.item(), rel=1e-6)
    assert same(gradients(model), want)
    assert machine.micro_batch == 2
    assert [line.split(",")[0] for line in said] == [
        "out of memory with 6 images at a time; from now on 3",
        "out of memory with 3 images at a time; from now on 2",
    ]
    machine.backward(images, truth, 8)
    assert len(said) == 2  # it stays at what fits


def test_running_statistics_are_those_of_the_pieces_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def statistics(first: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        config = method_section("troika")()
        model = build_model("troika", load_backbone("tiny", "none"), config, SPACE).train()
        score, calls = model.score, []

        def full_at_last(vectors: ImageVectors, bank: TextBank) -> Scores:
            calls.append(len(vectors))
            if calls == [4, 2]:  # the second piece of the first try
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return score(vectors, bank)

        monkeypatch.setattr(model, "score", full_at_last)
        machine = pieces(model)
        machine.micro_batch = first
        machine.backward(*batch(), 7)
        return {name: value for name, value in model.saved_tensors().items() if ".running_" in name}

    retried, at_once = statistics(4), statistics(2)
    assert retried
    assert all(torch.equal(value, at_once[name]) for name, value in retried.items())


@pytest.mark.parametrize("method", [method for method in BUILT_IN_METHODS if method != "clip"])
def test_a_method_whose_gradients_follow_the_pieces_is_noted(method: str) -> None:
    kind = method_section(method)
    plain = kind(**{name: 0.0 for name in kind.model_fields if name.endswith("dropout")})
    torch.manual_seed(0)
    model = build_model(method, load_backbone("tiny", "none"), plain, SPACE).train()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    machine = pieces(model)
    machine.backward(*batch(), 7)
    whole = [grad.clone() for grad in gradients(model)]
    machine.micro_batch = 3
    machine.backward(*batch(), 7)
    assert same(gradients(model), whole) == (batch_norm_note(model, 3, 6) is None)
    assert batch_norm_note(model, 6, 6) is None


def test_halving_says_what_it_changes_with_batch_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("troika", load_backbone("tiny", "none"), method_section("troika")(), SPACE).train()
    out_of_memory_above(model, monkeypatch, 3, torch.OutOfMemoryError("CUDA out of memory."))
    said: list[str] = []
    pieces(model, said.append).backward(*batch(), 7)
    assert said[0].startswith("out of memory with 6 images")
    assert "mean and variance of 3 images, not of the batch of 6" in said[1]


def test_one_image_that_does_not_fit_is_an_error_with_advice(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory_above(model, monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(RefinerError, match="gradient_checkpointing"):
        pieces(model).backward(*batch(), 7)


def test_other_errors_pass(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory_above(model, monkeypatch, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        pieces(model).backward(*batch(), 7)


def test_computing_activations_again_changes_no_gradient(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, truth = batch()
    want_loss, _ = pieces(model).backward(images, truth, 7)
    want = [grad.clone() for grad in gradients(model)]
    monkeypatch.setattr(model, "memory", MemoryOptions(gradient_checkpointing=True))
    assert pieces(model).backward(images, truth, 7)[0] == want_loss
    assert all(torch.allclose(g, w, rtol=1e-5) for g, w in zip(gradients(model), want, strict=True))


def test_prompts_that_do_not_fit_are_an_error_with_advice(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(space: LabelSpace) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model, "encode_pairs", full)
    with pytest.raises(RefinerError, match="text_chunk"):
        pieces(model).backward(*batch(), 7)


def test_scores_come_back_for_the_whole_batch(model: Model) -> None:
    machine = pieces(model)
    machine.micro_batch = 4
    loss, scores = machine.backward(*batch(), 7, weight=0.5)
    assert scores.composition.shape == (6, len(SPACE.pairs))
    assert not scores.composition.requires_grad
    assert loss.item() == pytest.approx(machine.backward(*batch(), 7)[0].item() / 2)


def test_training_with_prefix_cache_and_chunks_has_the_losses_of_the_plain_path(
    tmp_path: Path, small_demo: Path
) -> None:
    assert check_paths.gap(tmp_path, load_benchmark(small_demo), 4) < 1e-4
