"""Patch grids: where they lie, and that what is read on them is added."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from refiner_cli.config import method_section
from refiner_cli.core.models.baselines.traction import PatchedVectors
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.models.shifted_views import SHIFTS, shifted_view
from refiner_cli.core.runtime.device import RuntimeOptions
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.data.labels import LabelSpace
from refiner_cli.evaluation.scoring import image_batches, score_split
from refiner_cli.plugins import BUILT_IN_METHODS
from tests.core.cases import SPACE

PATCH = 8


def shifted_views(images: torch.Tensor, patch: int, count: int) -> list[torch.Tensor]:
    return [shifted_view(images, patch, shift) for shift in SHIFTS[count]]


def test_one_grid_is_the_picture_itself(pixels: torch.Tensor) -> None:
    (only,) = shifted_views(pixels, PATCH, 1)
    assert torch.equal(only, pixels)


def test_two_grids_lie_half_a_patch_apart(pixels: torch.Tensor) -> None:
    first, second = shifted_views(pixels, PATCH, 2)
    assert first.shape == second.shape == pixels.shape
    half = PATCH // 2
    assert torch.equal(first[..., half:, half:], second[..., :-half, :-half])
    assert torch.equal(first[..., 2:, 2:], pixels[..., :-2, :-2])


def test_edges_are_mirrored(pixels: torch.Tensor) -> None:
    first, second = shifted_views(pixels, PATCH, 2)
    assert torch.equal(first[..., 2:, :2], pixels[..., :-2, 1:3].flip(-1))
    assert torch.equal(second[..., :-2, -2:], pixels[..., 2:, -3:-1].flip(-1))


def test_four_grids_lie_half_a_patch_apart_both_ways(pixels: torch.Tensor) -> None:
    by_place = dict(zip(SHIFTS[4], shifted_views(pixels, PATCH, 4), strict=True))
    first, half = by_place[-1, -1], PATCH // 2
    assert torch.equal(first[..., :, half:], by_place[1, -1][..., :, :-half])
    assert torch.equal(first[..., half:, :], by_place[-1, 1][..., :-half, :])
    assert torch.equal(first[..., half:, half:], by_place[1, 1][..., :-half, :-half])


@pytest.mark.parametrize("method", BUILT_IN_METHODS)
def test_what_is_read_on_the_grids_is_added(tiny: Backbone, pixels: torch.Tensor, method: str) -> None:
    model = build_model(method, tiny, method_section(method)(), SPACE).eval()
    model.calibration = Calibration(tta_shifts=2)
    with torch.no_grad():
        read = model.encode_images_tta(pixels)
        parts = [model.encode_images(view) for view in shifted_views(pixels, tiny.visual.patch_size, 2)]
        for role in ("composition", "state", "object"):
            want = F.normalize(getattr(parts[0], role) + getattr(parts[1], role), dim=-1)
            assert torch.allclose(getattr(read, role), want, atol=1e-6)
        if isinstance(read, PatchedVectors):
            assert isinstance(parts[0], PatchedVectors)
            assert read.patches.shape[1] == 2 * parts[0].patches.shape[1]
        model.calibration = Calibration()
        one, plain = model.encode_images_tta(pixels), model.encode_images(pixels)
    assert torch.allclose(one.composition, plain.composition, atol=1e-6)
    assert not torch.allclose(read.composition, plain.composition, atol=1e-3)


class Kept:
    """Takes the scores as they are."""

    calibration = Calibration()

    def __init__(self, space: LabelSpace) -> None:
        self.space = space
        self.scores: list[torch.Tensor] = []

    def update(self, scores: torch.Tensor, truth: torch.Tensor) -> None:
        self.scores.append(scores)


def test_evaluation_reads_on_the_grids(tiny: Backbone, small_demo: Path) -> None:
    demo = load_benchmark(small_demo)
    space, setting = demo.label_space("val"), RuntimeOptions()
    model = build_model("clip", tiny, method_section("clip")(), space)
    model.calibration = Calibration(tta_shifts=2)
    kept = Kept(space)
    score_split(model, demo, "val", [kept], setting)
    with torch.no_grad():
        bank = model.encode_pairs(space)
        want = [
            model.score(model.encode_images_tta(b.images), bank).composition
            for b in image_batches(model, demo, "val", setting)
        ]
        one = model.score(model.encode_images(next(image_batches(model, demo, "val", setting)).images), bank)
    assert torch.equal(torch.cat(kept.scores), torch.cat(want))
    assert not torch.allclose(kept.scores[0], one.composition, atol=1e-3)
