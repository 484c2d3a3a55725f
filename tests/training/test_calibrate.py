"""Calibration: every candidate is measured as it would be used, and the plainest good one is chosen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from refiner_cli.config import CalibrationConfig, method_section
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.calibration import Calibration, tempered
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.device import RuntimeOptions
from refiner_cli.core.towers.backbone import Backbone, load_backbone
from refiner_cli.core.towers.half import cast_frozen
from refiner_cli.data.benchmark import Benchmark, World, load_benchmark
from refiner_cli.data.labels import LabelSpace
from refiner_cli.evaluation.metrics.bias_sweep import sweep
from refiner_cli.evaluation.metrics.bootstrap import MeasuredSplit, resample
from refiner_cli.evaluation.scoring import evaluate_worlds, no_progress
from refiner_cli.training import calibrate as module
from refiner_cli.training import candidates as grid
from refiner_cli.training.calibrate import calibrate, fit_hubness, measure_candidates, spread_rows
from refiner_cli.training.candidates import (
    Candidate,
    choose,
    composition_candidates,
    criterion_samples,
    evidence_candidates,
    sure_gain,
)
from refiner_cli.training.encoded_images import EncodedImages, spread_mask
from refiner_cli.training.temperature import best_temperature, fit_confidence, minimum, surely_positive
from tests.evaluation.cases import make_case

OPTIONS = RuntimeOptions(batch_size=20)
METHODS = ("refiner", "clip", "troika")


@pytest.fixture(scope="module")
def demo(small_demo: Path) -> Benchmark:
    return load_benchmark(small_demo)


def model_of(method: str, tiny: Backbone, demo: Benchmark) -> Model:
    """An untrained model whose learned values are moved a little, so that every setting matters."""
    torch.manual_seed(0)
    model = build_model(method, tiny, method_section(method)(), demo.vocabulary)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_sure_gain_over_the_plainest_is_chosen(seed: int) -> None:
    chance = np.random.default_rng(seed)
    gains = chance.normal(chance.normal(0, 2, (9, 1)), 2, (9, 200))
    gains[0] = 0
    gains[chance.integers(1, 9), :50] = np.nan  # where a resampled set has no unseen pair
    shared = chance.normal(0, 100, 200)  # the sets differ more than the candidates do
    candidates: list[Any] = [SimpleNamespace(samples=lambda own=gain: own + shared) for gain in gains]
    sure = [sorted(gain[~np.isnan(gain)])[int(0.05 * (~np.isnan(gain)).sum())] for gain in gains]
    clear = int(np.argmax(sure))
    assert candidates.index(choose(candidates)) == clear
    assert choose(candidates[:1]) is candidates[0]
    beaten: list[Any] = [SimpleNamespace(samples=lambda own=gain: own - 9 + shared) for gain in gains[1:]]
    assert choose([candidates[0], *beaten]) is candidates[0]
    assert choose([candidates[clear], *[candidates[clear]] * 2]) is candidates[clear]


def test_a_gain_is_sure_if_it_is_more_than_chance() -> None:
    weak, same, strong = (
        resample(case.summary(), case.space, bootstrap_samples=200)["AUC"]
        for case in (make_case(3, images=200, skill=skill) for skill in (0.5, 0.51, 1.5))
    )
    assert sure_gain(strong - weak) > 0
    assert sure_gain(weak - strong) < 0
    assert sure_gain(same - weak) <= 0
    assert sure_gain(np.full(200, np.nan)) == -np.inf


@pytest.mark.parametrize(("pairs", "sure"), [(1, False), (4, False), (5, True)])
def test_a_gain_on_a_few_pairs_is_not_sure(pairs: int, sure: bool) -> None:
    case = make_case(3, images=100, skill=-1.0)
    truth = np.flatnonzero(case.space.seen)[np.arange(100) % pairs]
    better = case.scores.copy()
    better[np.arange(100), truth] += 100
    splits = [
        MeasuredSplit(type(case)(case.space, scores, truth, case.allowed).summary(), case.space)
        for scores in (case.scores, better)
    ]
    plain, best = (Candidate(Calibration(), ((one, sweep(one.summary, one.space)),)) for one in splits)
    assert (choose([plain, best]) is best) == sure


def test_a_gain_on_many_images_of_one_pair_is_not_sure() -> None:
    """All images of one unseen pair become right: another draw of pairs may lack it."""
    case = make_case(3, images=200, skill=1.0)
    summary, worst = case.summary(), case.scores.copy()
    pair = np.bincount(summary.truth[~summary.truth_seen]).argmax()
    rows = np.flatnonzero(summary.truth == pair)
    worst[rows, pair] += 100
    better = type(case)(case.space, worst, case.truth, case.allowed).summary()
    splits = [MeasuredSplit(one, case.space) for one in (summary, better)]
    by_pair = [criterion_samples(split, "AUC") for split in splits]
    by_image = [resample(split.summary, case.space, bootstrap_samples=200)["AUC"] for split in splits]
    assert sure_gain(by_image[1] - by_image[0]) > 0
    assert sure_gain(by_pair[1] - by_pair[0]) == 0


@pytest.mark.parametrize("method", METHODS)
def test_every_candidate_is_measured_as_it_would_be_used(
    method: str, tiny: Backbone, demo: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(method, tiny, demo)
    fit_hubness(model, demo, OPTIONS)
    encode, encoded = model.encode_images, list[int]()
    monkeypatch.setattr(model, "encode_images", lambda x: encoded.append(len(x)) or encode(x))
    settings = [
        Calibration(),
        Calibration(tta_shifts=2, hubness_strength=0.5, hubness_softness=1.0),
        Calibration(tta_shifts=4, wise_ft_alpha=0.25, state_weight=0.5, object_weight=2.0),
    ]
    images = EncodedImages(model, demo, "val", OPTIONS, no_progress, (1, 2, 4))
    worlds: tuple[World, World] = ("closed", "open")
    spaces: dict[str, LabelSpace] = {world: demo.label_space("val", world) for world in worlds}
    found = measure_candidates([images], settings, worlds)
    assert sum(encoded) == 5 * len(images)  # each of the five views once, for both worlds
    for one, tried in zip(found, settings, strict=True):
        model.calibration = tried
        want = evaluate_worlds(model, demo, "val", spaces, OPTIONS)
        for (_, metrics), wanted in zip(one.worlds, want.values(), strict=True):
            assert pytest.approx(wanted.AUC, abs=1e-6) == metrics.AUC
    again = measure_candidates([images], settings, ["closed"])  # with kept vectors, where they are kept
    assert [one.metrics for one in again] == [one.metrics for one in found]


def test_a_model_whose_frozen_weights_are_in_half_precision_is_calibrated(demo: Benchmark) -> None:
    """As a GPU trains it: such towers can be used under autocast alone."""
    few = dataclasses.replace(demo, samples={split: rows[::4] for split, rows in demo.samples.items()})
    half = cast_frozen(load_backbone("tiny", "none"), torch.bfloat16)
    model = model_of("refiner", half, few)
    options = RuntimeOptions(torch.bfloat16, 20)
    config = CalibrationConfig(tta_shifts=(1,), wise_ft_alpha=(1.0, 0.5))
    found = calibrate(model, few, config, options)
    used = evaluate_worlds(model, few, "val", {"closed": few.label_space("val")}, options)["closed"]
    assert found.metrics.AUC == used.AUC is not None


def test_a_view_that_several_numbers_share_is_encoded_once(
    tiny: Backbone, demo: Benchmark, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = model_of("refiner", tiny, demo), []
    encode = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda x: calls.append(len(x)) or encode(x))
    with torch.no_grad():
        found = model.encode_views(pixels, (1, 2, 4))
        assert len(calls) == 5
        for count, vectors in found.items():
            model.calibration = Calibration(tta_shifts=count)
            assert torch.allclose(vectors.composition, model.encode_images_tta(pixels).composition, atol=1e-6)


def test_candidates_begin_with_the_plainest_and_leave_out_what_has_no_effect(
    tiny: Backbone, demo: Benchmark
) -> None:
    config = CalibrationConfig()
    refiner, clip = model_of("refiner", tiny, demo), model_of("clip", tiny, demo)
    grid = composition_candidates(refiner, config)
    assert grid[0] == Calibration()
    assert len(grid) == len(set(grid)) == 3 * 3 * (1 + 2 * 2)
    assert Calibration(tta_shifts=4, wise_ft_alpha=0.5, hubness_strength=0.5) in grid
    assert {tried.wise_ft_alpha for tried in composition_candidates(clip, config)} == {1.0}
    weighted = evidence_candidates(refiner, Calibration(), config)
    assert weighted[0] == Calibration()
    assert len(set(weighted)) == 36
    assert evidence_candidates(clip, Calibration(), config) == [Calibration()]
    fixed = CalibrationConfig(tta_shifts=2, wise_ft_alpha=0.5, hubness_strength=0.5, hubness_softness=1)
    (only,) = composition_candidates(refiner, fixed)
    assert only == Calibration(tta_shifts=2, wise_ft_alpha=0.5, hubness_strength=0.5, hubness_softness=1.0)


@pytest.mark.parametrize("method", ["refiner", "troika"])
def test_the_model_is_left_with_the_choice(
    method: str, tiny: Backbone, demo: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "COMPARISON_SAMPLES", 20)
    model = model_of(method, tiny, demo)
    found = calibrate(
        model,
        demo,
        CalibrationConfig(hubness_strength=(0.5,), hubness_softness=(0.25,), tta_shifts=(2,)),
        OPTIONS,
    )
    assert model.calibration == found.calibration
    assert model.hubness is not None
    assert (found.calibration.tta_shifts, found.calibration.hubness_strength) == (2, 0.5)
    spaces: dict[str, LabelSpace] = {
        "closed": demo.label_space("val"),
        "open": demo.label_space("val", "open"),
    }
    used, wide = evaluate_worlds(model, demo, "val", spaces, OPTIONS).values()
    assert pytest.approx(found.metrics.AUC) == used.AUC
    assert used.bias == pytest.approx(found.calibration.bias)
    assert wide.bias == pytest.approx(found.calibration.open_bias)
    assert found.calibration.open_bias != found.calibration.bias
    fixed = CalibrationConfig(
        tta_shifts=1, wise_ft_alpha=1, hubness_strength=0, state_weight=0, object_weight=0, temperature=False
    )
    plain = calibrate(model, demo, fixed, OPTIONS).calibration
    assert model.hubness is None
    assert (plain.closed, plain.open) == (Calibration().closed, Calibration().open)


WEIGHTS = (0.5, 0.0, 1.0)


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("weights", [WEIGHTS, 0.5, 0.0])
def test_the_record_has_every_candidate_once_and_begins_at_the_first_of_each_setting(
    place: int, weights: Any, tiny: Backbone, demo: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "choose", lambda found: found[place])
    few = dataclasses.replace(demo, samples={split: rows[::4] for split, rows in demo.samples.items()})
    model = model_of("refiner", tiny, few)
    config = CalibrationConfig(
        tta_shifts=1, wise_ft_alpha=(0.5, 1.0), hubness_strength=0, state_weight=weights,
        object_weight=weights, temperature=False,
    )  # fmt: skip
    found = calibrate(model, few, config, OPTIONS)
    listed = weights if isinstance(weights, tuple) else (weights,)
    rows = [(one.wise_ft_alpha, one.state_weight, one.object_weight) for one, _ in found.candidates]
    assert len(rows) == len(set(rows))
    chosen = (0.5, 1.0)[place]
    wanted = {(alpha, 0.0, 0.0) for alpha in (0.5, 1.0)} | {(0.5, listed[0], listed[0])}
    assert set(rows) == wanted | {(chosen, b_s, b_o) for b_s in listed for b_o in listed}
    own = found.calibration
    assert (own.wise_ft_alpha, own.state_weight, own.object_weight) == (chosen, *[listed[place]] * 2)
    plain = Calibration(wise_ft_alpha=0.5, state_weight=listed[0], object_weight=listed[0])
    for metrics, calibration in ((found.plain, plain), (found.metrics, own)):
        model.calibration = calibration
        used = evaluate_worlds(model, few, "val", {"closed": few.label_space("val")}, OPTIONS)["closed"]
        assert pytest.approx(used.AUC, abs=1e-6) == metrics.AUC


def test_each_world_has_the_confidence_of_its_own_bias(tiny: Backbone, demo: Benchmark) -> None:
    few = dataclasses.replace(demo, samples={split: rows[::8] for split, rows in demo.samples.items()})
    model = model_of("clip", tiny, few)
    images = EncodedImages(model, few, "val", OPTIONS, no_progress, (1,))
    plain, biased, both = (
        fit_confidence(calibration, [images])
        for calibration in (Calibration(), Calibration(open_bias=4.0), Calibration(bias=4.0))
    )
    assert biased.closed == plain.closed != both.closed
    assert (
        biased.open == both.open != plain.open
    )  # without one of its own, the open world's bias is the other


def test_the_temperature_has_the_lowest_negative_log_likelihood() -> None:
    chance = torch.Generator().manual_seed(0)
    truth = torch.randint(5, (400,), generator=chance)
    logits = torch.randn(400, 5, generator=chance) + 1.5 * F.one_hot(truth, 5)
    for scale in (0.2, 1.0, 30.0):
        found = best_temperature(scale * logits, truth, truth.numpy())
        losses = {t: float(F.cross_entropy(scale * logits / t, truth)) for t in np.geomspace(0.01, 100, 2000)}
        assert found == pytest.approx(min(losses, key=losses.__getitem__), rel=0.01)
    every = np.arange(400)
    plain = best_temperature(logits, truth, every)
    assert best_temperature(30 * logits, truth, every) == pytest.approx(30 * plain, rel=0.01)


def test_a_temperature_below_one_has_to_help_surely() -> None:
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 5, generator=chance)
    torch.manual_seed(1)
    truth = torch.distributions.Categorical(logits=logits).sample()  # the logits tell the truth
    alone, few = np.arange(300), np.repeat([0, 1, 2], 100)
    exact = best_temperature(3 * logits, truth, alone) / 3
    assert exact == pytest.approx(1, rel=0.3)
    assert best_temperature(3 * logits, truth, few) == pytest.approx(3 * exact, rel=0.01)
    assert best_temperature(0.95 * logits / exact, truth, alone) == 1
    assert best_temperature(0.3 * logits / exact, truth, alone) == pytest.approx(0.3, rel=0.01)
    # A few pairs are all alike by chance.
    assert best_temperature(0.3 * logits / exact, truth, np.arange(300) % 4) == 1
    assert best_temperature(0.3 * logits / exact, truth, np.arange(300) % 5) == pytest.approx(0.3, rel=0.01)
    # Where all are right, no temperature is the best one.
    assert best_temperature(5.0 * F.one_hot(truth, 5), truth, alone) == 1
    values = np.concatenate([np.full(50, 1.0), np.full(50, -0.5)])
    assert surely_positive(values, np.arange(100))
    assert not surely_positive(values, np.repeat(np.arange(2), 50))  # two pairs say little


def test_the_minimum_of_a_valley_is_found() -> None:
    assert minimum(lambda x: (x - 0.3) ** 2, -5, 5) == pytest.approx(0.3, abs=1e-3)
    assert minimum(lambda x: x, -5, 5) == pytest.approx(-5, abs=1e-2)


def test_tempered_probabilities_sum_to_one_and_keep_their_order() -> None:
    rows = torch.rand(6, 4).softmax(-1)
    for temperature in (0.3, 1.0, 4.0):
        found = tempered(rows, temperature)
        want = rows ** (1 / temperature)
        assert torch.allclose(found, want / want.sum(-1, keepdim=True), atol=1e-6)
    assert torch.equal(tempered(torch.tensor([[1.0, 0.0]]), 2.0), torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_some_are_spread_evenly_and_none_twice(count: int) -> None:
    found = spread_rows(np.arange(count)).tolist()
    assert len(set(found)) == len(found) == min(count, 8)
    assert found[0] == 0
    assert count == 1 or found[-1] == count - 1
    for most in (0, 1, 5, 200):
        mask = spread_mask(count, most)
        assert mask.sum() == max(1, min(count, most))
        assert mask[0]


def test_a_large_open_world_is_measured_on_some_images(
    tiny: Backbone, demo: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = demo.label_space("val", "open")
    monkeypatch.setattr(module, "MAX_SCORES", 10 * len(space.pairs))
    model = model_of("clip", tiny, demo)
    images = EncodedImages(model, demo, "val", OPTIONS, no_progress, (1,))
    (one,) = measure_candidates([images], [Calibration()], ["closed", "open"])
    closed, wide = (split.summary for split, _ in one.worlds)
    pairs = [sample.pair for sample in demo.samples["val"]]
    assert len(wide) == 10 < len(closed) < len(pairs)
    assert [space.pairs[i] for i in wide.truth] == [
        pairs[i] for i in spread_mask(len(pairs), 10).nonzero().squeeze(1).tolist()
    ]


def test_without_unseen_pairs_what_stands_for_the_auc_is_compared(tiny: Backbone, demo: Benchmark) -> None:
    seen = set(demo.pairs["train"])
    val = tuple(sample for sample in demo.samples["val"] if sample.pair in seen)
    few = dataclasses.replace(demo, samples={**demo.samples, "val": val})
    found = calibrate(model_of("clip", tiny, demo), few, CalibrationConfig(), OPTIONS)
    assert found.criterion == "S"
    assert found.metrics.AUC is None
    assert found.calibration.bias == 0
