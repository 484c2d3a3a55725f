"""CoOp, CSP and Troika compute what their papers say: against numbers made by ``published_methods.py``."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from refiner_cli.config import TrainConfig, method_section
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.baselines.troika import Troika
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.data.labels import LabelSpace
from tests.core.models import published_methods as reference

PAIRS = [(reference.STATES[s], reference.OBJECTS[o]) for s, o in reference.PAIRS]
SPACE = LabelSpace.from_pairs(PAIRS, PAIRS)
WITHOUT_DROPOUT = {
    "coop": {},
    "csp": {"primitive_dropout": 0},
    "troika": {
        "adapter_dim": reference.DIM, "adapter_dropout": 0, "primitive_dropout": 0,
        "disentangle_dropout": 0, "traction_blocks": reference.TRACTION_BLOCKS,
    },
}  # fmt: skip


def put_values(model: Model, want: dict[str, Any]) -> None:
    """Give every parameter the value that it has in the reference."""
    parameters = model.trainable_parameters()
    assert set(parameters) == set(want["gradients"])
    others = {name: k for k, name in enumerate(reference.troika_shapes())}
    prompts = [name for name in want["gradients"] if name.startswith("prompts")]
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name in prompts:
                parameter.add_(reference.fill(parameter.shape, prompts.index(name), 0.01).float())
            else:
                parameter.copy_(reference.value_of(name, parameter.shape, others[name]))


@pytest.mark.parametrize("method", WITHOUT_DROPOUT)
def test_logits_loss_and_gradients_are_the_published_ones(tiny: Backbone, method: str) -> None:
    want = json.loads(reference.FIXTURE.read_text("utf-8"))[method]
    model = build_model(method, tiny, method_section(method)(**WITHOUT_DROPOUT[method]), SPACE).train()
    put_values(model, want)
    scores = model.score(model.encode_images(reference.images().float()), model.encode_pairs(SPACE))
    found = [x for x in (scores.composition, scores.state, scores.object) if x is not None]
    for ours, theirs in zip(found, want["logits"], strict=True):
        assert torch.allclose(ours, torch.tensor(theirs), atol=2e-4)
    _, state_weight, object_weight = reference.WEIGHTS
    train = TrainConfig(state_weight=state_weight, object_weight=object_weight)
    loss = model.loss(scores, torch.tensor(reference.TRUTH), SPACE, train)
    assert loss.item() == pytest.approx(want["loss"], rel=1e-5)
    loss.backward()
    for name, parameter in model.trainable_parameters().items():
        assert parameter.grad is not None
        # The bias before a batch normalisation has no gradient but rounding.
        slack = 1e-3 * want["sizes"][name] + 1e-5
        ours = torch.tensor(reference.projections(parameter.grad))
        assert torch.allclose(ours, torch.tensor(want["gradients"][name]), rtol=0, atol=slack), name


def test_the_published_score_adds_the_product_of_both_probabilities(tiny: Backbone) -> None:
    torch.manual_seed(0)
    model = build_model("troika", tiny, method_section("troika")(), SPACE).eval()
    with torch.no_grad():
        scores = model.score(model.encode_images(reference.images().float()), model.encode_pairs(SPACE))
        combined = model.combine(scores, SPACE)
    assert scores.state is not None
    assert scores.object is not None
    states, objects = scores.state.softmax(-1), scores.object.softmax(-1)
    for p, (s, o) in enumerate(reference.PAIRS):
        want = scores.composition[:, p] + states[:, s] * objects[:, o]
        assert torch.allclose(combined[:, p], want)


def test_running_statistics_are_stored_and_a_single_image_uses_them(tiny: Backbone) -> None:
    torch.manual_seed(0)
    config = method_section("troika")(disentangle_dropout=0, adapter_dropout=0)
    model = build_model("troika", tiny, config, SPACE).train()
    assert isinstance(model, Troika)
    pixels = reference.images().float()
    name = "disentangle.state.norm.running_mean"
    assert name in model.saved_tensors()
    before = model.saved_tensors()[name].clone()
    model.encode_images(pixels)
    assert not torch.equal(model.saved_tensors()[name], before)
    single = model.encode_images(pixels[:1])
    assert torch.equal(single.state, model.eval().encode_images(pixels[:1]).state)
