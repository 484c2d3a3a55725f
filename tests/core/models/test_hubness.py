"""Hubness correction: its formula, and that it takes from hubness what every image gives them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from refiner_cli.core.models.hubness import CHUNK_SIZE, HubnessCorrection

SCALE = 20.0
SETTINGS = {"strength": 0.5, "softness": 0.25}


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize(("strength", "softness"), [(0.5, 0.25), (1.0, 1.0)])
def test_a_level_is_the_soft_mean_of_the_logits_at_the_centres(strength: float, softness: float) -> None:
    vectors, truth, texts = unit(50, 8), torch.arange(50) % 6, unit(CHUNK_SIZE + 3, 8, seed=1)
    hubness = HubnessCorrection(6, 8)
    hubness.fit(vectors, truth)
    offsets = hubness(texts, SCALE, strength=strength, softness=softness)
    for i in (0, 17, CHUNK_SIZE, CHUNK_SIZE + 2):
        logits = torch.stack([SCALE * vectors[truth == q].mean(0) @ texts[i] for q in range(6)])
        assert torch.isclose(
            offsets[i], (softness * logits).exp().mean().log() * strength / softness, atol=1e-4
        )


def test_the_precision_outside_changes_no_level() -> None:
    hubness, texts = HubnessCorrection(6, 8), unit(9, 8, seed=1)
    hubness.fit(unit(50, 8), torch.arange(50) % 6)
    with torch.autocast("cpu", torch.bfloat16):
        inside = hubness(texts, SCALE, **SETTINGS)
    assert torch.equal(inside, hubness(texts, SCALE, **SETTINGS))


def test_nothing_measured_offsets_nothing() -> None:
    assert torch.equal(HubnessCorrection(6, 8)(unit(3, 8), SCALE, **SETTINGS), torch.zeros(3))


def test_a_pair_without_pictures_has_its_centre_at_zero() -> None:
    hubness = HubnessCorrection(3, 8)
    hubness.fit(unit(4, 8), torch.tensor([0, 0, 2, 2]))
    assert torch.equal(hubness.centres[1], torch.zeros(8))
    assert hubness(unit(3, 8), SCALE, **SETTINGS).isfinite().all()


def test_a_text_near_every_picture_no_longer_wins_them_all() -> None:
    common = F.one_hot(torch.tensor(7), 8).float()  # what all pictures share
    own = torch.eye(8)[:6]  # what tells them apart
    pictures = F.normalize(own + 1.2 * common, dim=-1)
    texts = torch.cat([own, common[None]])  # the last one is the hub
    assert (pictures @ texts.T).argmax(1).tolist() == [6] * 6
    hubness = HubnessCorrection(6, 8)
    hubness.fit(pictures, torch.arange(6))
    assert (SCALE * pictures @ texts.T - hubness(texts, SCALE, **SETTINGS)).argmax(1).tolist() == list(
        range(6)
    )
