"""Confidence: calibration error and thresholds against their definitions, written as loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refiner_cli.core.models.calibration import (
    LEVELS,
    Promise,
    Temperatures,
    Threshold,
    tempered,
)
from refiner_cli.evaluation.metrics.breakdown import bin_confidences
from refiner_cli.evaluation.metrics.confidence import (
    NOTHING,
    PROMISES,
    ConfidenceStream,
    TopProbabilities,
    find_promises,
    kept_promises,
    verdicts,
)
from refiner_cli.evaluation.metrics.precision_thresholds import (
    counted_images,
    pair_correlation,
    widest_threshold,
    wilson_interval,
)
from refiner_cli.inference.verdicts import Guess, VerdictRule
from tests.evaluation.cases import make_case


def made_up(seed: int, images: int = 400, pairs: int = 20) -> TopProbabilities:
    """Guesses that are right about as often as they say, pairs less often than states."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(pairs, size=images)
    ease = rng.normal(0, 0.1, pairs)[truth]
    probability, right = {}, {}
    for level, power in (("pair", 1.0), ("object", 0.7), ("state", 0.3)):
        probability[level] = np.round(rng.random(images) ** power, 2)  # with equal ones
        right[level] = rng.random(images) < probability[level] + ease
    return TopProbabilities(probability, right, truth)  # type: ignore[arg-type]


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_calibration_error_is_that_of_its_definition(bins: int) -> None:
    found = made_up(0)
    confidence, right = found.probability["pair"], found.right["pair"]
    confidence[:2] = 0.0, 1.0
    error = 0.0
    for b in range(bins):
        inside = [
            i for i, c in enumerate(confidence) if b / bins <= c < (b + 1) / bins or c == 1 == (b + 1) / bins
        ]
        if inside:
            gap = np.mean([confidence[i] for i in inside]) - np.mean([right[i] for i in inside])
            error += abs(gap) * len(inside) / len(confidence)
    assert bin_confidences(confidence, right, bins=bins).error == pytest.approx(100 * error, abs=1e-9)


@pytest.mark.parametrize("temperatures", [Temperatures(), Temperatures(0.5, 2.0, 1.5)])
@pytest.mark.parametrize("bias", [0.0, 0.8])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keep", [1.0, 0.6])
def test_probabilities_are_those_of_all_pairs(
    temperatures: Temperatures, bias: float, masked: bool, keep: float
) -> None:
    case = make_case(1, images=30, allowed=0.7 if masked else 1.0, keep=keep)
    space = case.space
    assert space.is_grid == (keep == 1)
    stream = ConfidenceStream(space, (Temperatures(1.0, 3.0, 0.3), temperatures), bias, case.allowed)
    for part in (slice(0, 11), slice(11, None)):
        stream.update(torch.from_numpy(case.scores[part]), torch.from_numpy(case.truth[part]))
    _, found = stream.results()
    assert found.pairs.tolist() == case.truth.tolist()
    for i, scores in enumerate(case.scores.astype(np.float64)):
        values = np.where(case.allowed, scores + bias * ~space.seen, -np.inf) / temperatures.pair
        shares = np.exp(values - values.max())
        shares /= shares.sum()
        for level, index, count in (
            ("pair", np.arange(len(shares)), len(shares)),
            ("object", space.pair_object, len(space.objects)),
            ("state", space.pair_state, len(space.states)),
        ):
            sums = np.array([shares[index == k].sum() for k in range(count)])
            if level != "pair":
                sums = tempered(torch.from_numpy(sums)[None], getattr(temperatures, level))[0].numpy()
            assert found.probability[level][i] == pytest.approx(sums.max(), abs=1e-5)  # type: ignore[index]
            assert found.right[level][i] == (sums.argmax() == index[case.truth[i]])  # type: ignore[index]


def test_wilsons_interval_holds_the_shares_that_explain_what_was_seen() -> None:
    for right, images in ((0, 5), (3, 5), (20, 20), (450, 500)):
        low, high = wilson_interval(np.array(right / images), np.array(float(images)), 0.95)
        grid = np.linspace(0, 1, 100_001)
        with np.errstate(invalid="ignore", divide="ignore"):
            z = np.abs(right / images - grid) / np.sqrt(grid * (1 - grid) / images)
        inside = grid[(z <= 1.959964) | (grid == right / images)]
        assert (low, high) == (pytest.approx(inside.min(), abs=2e-5), pytest.approx(inside.max(), abs=2e-5))


def test_images_of_a_pair_that_are_alike_count_as_fewer() -> None:
    pairs = np.array([0, 0, 0, 1, 1, 2])
    assert counted_images(pairs, 0.0).tolist() == [1, 2, 3, 4, 5, 6]
    sizes = [np.bincount(pairs[: n + 1]) for n in range(6)]
    want = [(n + 1) / (1 + 0.5 * ((s**2).sum() / (n + 1) - 1)) for n, s in enumerate(sizes)]
    assert counted_images(pairs, 0.5) == pytest.approx(want)
    assert counted_images(np.zeros(9, int), 1.0)[-1] == pytest.approx(1)
    many = np.repeat(np.arange(50), 20)
    rng = np.random.default_rng(0)
    assert pair_correlation(rng.random(1000) < 0.6, many) < 0.05
    assert pair_correlation(np.repeat(rng.random(50) < 0.6, 20), many) == pytest.approx(1, abs=0.05)
    assert pair_correlation(np.ones(1000, bool), many) == 0
    assert pair_correlation(rng.random(20) < 0.6, np.zeros(20, int)) == 1  # one pair shows nothing of others


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("precision", [0.5, 0.8, 0.95])
def test_a_threshold_is_the_lowest_that_surely_keeps_its_promise(seed: int, precision: float) -> None:
    found = made_up(seed)
    probability, right, pairs = found.probability["state"], found.right["state"], found.pairs
    rho = pair_correlation(right, pairs)
    kept = []
    for value in sorted(set(probability.tolist())):
        given = probability >= value
        sizes = np.bincount(pairs[given])
        counted = given.sum() / (1 + rho * ((sizes**2).sum() / given.sum() - 1))
        low, _ = wilson_interval(right[given].mean(), counted, 0.9)
        if low >= precision:
            kept.append(value)
    assert widest_threshold(probability, right, pairs, precision, rho) == (kept[0] if kept else None)


def test_an_image_that_several_models_were_measured_on_counts_once() -> None:
    found = made_up(2)
    probability, right, pairs = found.probability["state"], found.right["state"], found.pairs
    rows = np.sort(np.concatenate([np.arange(400), np.arange(0, 400, 2), np.arange(0, 400, 4)]))
    rho = pair_correlation(right, pairs)
    for end in (1, 7, 100, len(rows)):
        once = counted_images(pairs[np.unique(rows[:end])], rho)[-1]
        assert counted_images(pairs[rows[:end]], rho, rows[:end])[-1] == pytest.approx(once)
    twice = np.repeat(np.arange(400), 2)
    copied = probability[twice], right[twice], pairs[twice]
    found_once = [widest_threshold(probability, right, pairs, p, rho) for p in (0.6, 0.7, 0.8)]
    assert [widest_threshold(*copied, p, rho, twice) for p in (0.6, 0.7, 0.8)] == found_once
    assert [widest_threshold(*copied, p, rho) for p in (0.6, 0.7, 0.8)] != found_once  # as 800 images


def test_every_threshold_counts_for_what_those_before_it_leave_over() -> None:
    found = made_up(3)
    for promise in find_promises(found):
        verdict = verdicts(found, promise)
        rule = VerdictRule(promise.pair.probability, promise.object.probability, promise.state.probability)
        for i in range(len(found)):  # as prediction decides it
            said = rule.decide({level: Guess(found.probability[level][i]) for level in LEVELS})
            assert said.level == ([*LEVELS, "unknown"][verdict[i]])
        for place, level in enumerate(LEVELS):
            given = verdict == place
            threshold = getattr(promise, level)
            assert threshold.coverage == pytest.approx(given.mean())
            if given.any():
                assert threshold.precision == pytest.approx(found.right[level][given].mean())
                assert threshold.precision > promise.precision
            else:
                assert threshold.precision is None
    assert [one.precision for one in find_promises(found)] == sorted(PROMISES)


def test_what_a_split_shows_of_a_promise() -> None:
    found = made_up(4)
    never = Threshold(None, 0.0, None)
    promise = Promise(0.9, Threshold(0.8, 0.3, 0.92), never, Threshold(0.9, 0.4, 0.95))
    pair, obj, state = kept_promises(found, (promise,))
    sure = found.probability["pair"] >= 0.8
    rest = ~sure & (found.probability["state"] >= 0.9)
    assert pair.coverage == pytest.approx(sure.mean())
    assert pair.measured == pytest.approx(found.right["pair"][sure].mean())
    assert pair.interval is not None
    assert pair.interval[0] < pair.measured < pair.interval[1]
    assert (obj.coverage, obj.measured, obj.interval) == (0.0, None, None)
    assert state.measured == pytest.approx(found.right["state"][rest].mean())
    assert (verdicts(found, promise) == NOTHING).mean() == pytest.approx(1 - sure.mean() - rest.mean())


def test_promises_hold_on_new_images_of_the_same_kind() -> None:
    broken = asked = 0
    for seed in range(40):
        rules = find_promises(made_up(seed, pairs=400))
        for kept in kept_promises(made_up(1000 + seed, 4000, pairs=4000), rules):
            if kept.precision == 0.9 and kept.measured is not None:
                asked += 1
                broken += kept.measured < 0.9
    assert asked > 20
    assert broken / asked < 0.2
