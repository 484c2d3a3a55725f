"""Baselines: each learns what it says, starts at CLIP where it should, and fits the open world."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from refiner_cli.config import method_section
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.baselines import traction
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.errors import ConfigError
from refiner_cli.plugins import BUILT_IN_METHODS
from tests.core.cases import SPACE, steps


def logits(model: Model, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        model.eval()
        return model.score(model.encode_images(pixels), model.encode_pairs(SPACE)).composition


@pytest.mark.parametrize("method", ["coop", "csp"])
def test_prompted_baselines_start_at_zero_shot(tiny: Backbone, pixels: torch.Tensor, method: str) -> None:
    ours, clip = (logits(build_model(m, tiny, method_section(m)(), SPACE), pixels) for m in (method, "clip"))
    assert torch.allclose(ours, clip, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "learns"),
    [
        ("clip", set()),
        ("coop", {"prompts.contexts.composition"}),
        ("csp", {"prompts.states", "prompts.objects"}),
    ],
)
def test_each_learns_what_it_says(tiny: Backbone, method: str, learns: set[str]) -> None:
    assert set(build_model(method, tiny, method_section(method)(), SPACE).trainable_parameters()) == learns


@pytest.mark.parametrize("method", [m for m in BUILT_IN_METHODS if m != "clip"])
def test_every_method_learns(tiny: Backbone, pixels: torch.Tensor, method: str) -> None:
    torch.manual_seed(0)
    section = method_section(method)
    config = section.model_validate(
        {"primitive_dropout": 0} if "primitive_dropout" in section.model_fields else {}
    )
    model = build_model(method, tiny, config, SPACE)
    losses = steps(model, pixels, 4)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", ["troika", "troika-shared"])
def test_chunks_of_pairs_change_no_score(
    tiny: Backbone, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    torch.manual_seed(0)
    model = build_model(method, tiny, method_section(method)(), SPACE)
    whole = logits(model, pixels)
    monkeypatch.setattr(traction, "TEXTS_PER_BLOCK", 1)
    assert torch.allclose(logits(model, pixels), whole, atol=1e-5)


@pytest.mark.parametrize("method", ["troika", "troika-shared"])
def test_troika_reads_the_patches(tiny: Backbone, pixels: torch.Tensor, method: str) -> None:
    model = build_model(method, tiny, method_section(method)(), SPACE).eval()
    with torch.no_grad():
        images, bank = model.encode_images(pixels), model.encode_pairs(SPACE)
        assert isinstance(images, traction.PatchedVectors)
        other = replace(images, patches=images.patches.flip(0))
        assert not torch.allclose(model.score(images, bank).composition, model.score(other, bank).composition)


def test_an_unknown_method_is_named(tiny: Backbone) -> None:
    with pytest.raises(ConfigError, match="'magic' is unknown"):
        build_model("magic", tiny, method_section("magic")(), SPACE)
