from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refiner_cli.data.labels import LabelSpace
from refiner_cli.evaluation.metrics.bias_sweep import curve, harmonic_mean, sweep
from refiner_cli.evaluation.metrics.streaming import ScoreStream
from tests.evaluation.cases import CASES, Case, make_case, published, scanned


@settings(max_examples=300, deadline=None)
@given(CASES)
def test_legacy_is_the_published_algorithm(case: Case) -> None:
    metrics = sweep(case.summary(), case.space, "legacy").to_json()
    for name, value in published(case).items():
        if name == "bias":
            assert metrics[name] == value
        else:
            assert metrics[name] == pytest.approx(100 * value, abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(CASES)
def test_exact_is_an_exhaustive_scan_of_the_bias(case: Case) -> None:
    metrics = sweep(case.summary(), case.space, "exact").to_json()
    for name, value in scanned(case).items():
        assert metrics[name] == pytest.approx(100 * value, abs=1e-9), name


@settings(max_examples=100, deadline=None)
@given(CASES)
def test_exact_area_is_the_share_of_image_pairs_with_a_common_bias(case: Case) -> None:
    digest = case.summary()
    change, seen = digest.breakpoints(), digest.truth_seen
    together = change[seen][:, None] > change[~seen][None, :]
    share = together.mean() if together.size else 0.0
    assert pytest.approx(100 * share, abs=1e-9) == sweep(digest, case.space).AUC


@settings(max_examples=100, deadline=None)
@given(CASES)
def test_the_reported_bias_reaches_the_reported_harmonic_mean(case: Case) -> None:
    digest = case.summary()
    metrics = sweep(digest, case.space)
    right = digest.correct(metrics.bias)
    s = right[digest.truth_seen].mean() if digest.truth_seen.any() else 0.0
    u = right[~digest.truth_seen].mean() if (~digest.truth_seen).any() else 0.0
    if metrics.HM:
        assert pytest.approx(100 * 2 * s * u / (s + u), abs=1e-9) == metrics.HM


@settings(max_examples=100, deadline=None)
@given(CASES, st.integers(0, 2**32))
def test_exact_depends_on_no_order(case: Case, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, columns = rng.permutation(len(case.truth)), rng.permutation(len(case.space.pairs))
    where = np.argsort(columns)
    shuffled = Case(
        LabelSpace(
            case.space.states,
            case.space.objects,
            tuple(case.space.pairs[i] for i in columns),
            case.space.seen_pairs,
        ),
        case.scores[images][:, columns],
        where[case.truth[images]],
        case.allowed[columns],
    )
    assert sweep(shuffled.summary(), shuffled.space) == sweep(case.summary(), case.space)


def test_equal_scores_win_nothing() -> None:
    case = make_case(0, ties=True, scale=0.0)
    metrics = sweep(case.summary(), case.space)
    assert (metrics.S, metrics.U, metrics.HM, metrics.AUC) == (0, 0, 0, 0)
    assert (metrics.state_acc, metrics.object_acc, metrics.ties) == (0, 0, len(case.truth))


def test_a_tie_within_one_state_still_names_the_state() -> None:
    space = LabelSpace(("a", "b"), ("x", "y"), (("a", "x"), ("a", "y"), ("b", "x")), frozenset({("a", "x")}))
    stream = ScoreStream(space)
    stream.update(np.array([[1, 1, 0]], dtype=np.float32), np.array([0]))
    metrics = sweep(stream.summary(), space)
    assert (metrics.state_acc, metrics.object_acc) == (100, 0)


def test_perfect_scores_give_a_hundred() -> None:
    case = make_case(1, skill=50.0)
    metrics = sweep(case.summary(), case.space)
    assert (metrics.S, metrics.U, metrics.HM, metrics.AUC) == (100, 100, 100, 100)
    assert (metrics.state_acc, metrics.object_acc) == (100, 100)


@pytest.mark.parametrize("protocol", ["exact", "legacy"])
def test_nothing_right_is_zero_and_finite(protocol: str) -> None:
    case = make_case(2, skill=-50.0)
    metrics = sweep(case.summary(), case.space, protocol)
    assert metrics.AUC == 0
    assert metrics.HM == 0
    assert math.isfinite(metrics.bias)


def test_legacy_reads_below_exact_on_a_concave_curve() -> None:
    case = make_case(3, images=4000, states=8, objects=9, skill=2.0)
    digest = case.summary(500)
    assert 0 < sweep(digest, case.space).AUC - sweep(digest, case.space, "legacy").AUC < 1


def test_rounding_at_the_largest_bias_ties_cosines() -> None:
    """At +1000 float32 keeps steps of 6e-5, so the published algorithm takes the first of two near scores."""
    space = LabelSpace(("a",), ("x", "y", "z"), (("a", "x"), ("a", "y"), ("a", "z")), frozenset({("a", "z")}))
    stream = ScoreStream(space)
    stream.update(np.array([[0.30000, 0.30001, 0.1]], dtype=np.float32), np.array([1]))
    assert sweep(stream.summary(), space, "legacy").U == 0
    assert sweep(stream.summary(), space, "exact").U == 100


def test_counts_and_json() -> None:
    case = make_case(4)
    metrics = sweep(case.summary(), case.space)
    assert metrics.n_seen + metrics.n_unseen == len(case.truth)
    assert metrics.n_seen == np.count_nonzero(case.space.seen[case.truth])
    names = {"S", "U", "HM", "AUC", "state_acc", "object_acc", "bias", "n_seen", "n_unseen", "ties"}
    assert set(json.loads(json.dumps(metrics.to_json(), allow_nan=False))) == names


@pytest.mark.parametrize("protocol", ["exact", "legacy"])
def test_the_curve_runs_from_seen_to_unseen(protocol: str) -> None:
    case = make_case(5, images=300, skill=2.0)
    points = curve(case.summary(), protocol)
    assert np.all(np.diff(points.bias) >= 0)
    assert np.all(np.diff(points.seen) <= 0)
    assert np.all(np.diff(points.unseen) >= 0)
    assert points.harmonic[points.best] == points.harmonic.max()


def test_the_exact_curve_visits_every_breakpoint() -> None:
    case = make_case(6, images=200, skill=2.0)
    digest = case.summary()
    finite = digest.breakpoints()[np.isfinite(digest.breakpoints())]
    assert len(curve(digest).bias) == len(np.unique(finite)) + 1


def test_take_repeats_and_drops_images() -> None:
    case = make_case(7)
    digest = case.summary()
    assert digest.select(np.array([3, 3, 5])).truth.tolist() == digest.truth[[3, 3, 5]].tolist()
    assert len(digest.select(digest.truth_seen)) == np.count_nonzero(digest.truth_seen)


def test_harmonic_mean_of_zeros_is_zero() -> None:
    assert harmonic_mean(np.array([0.0, 50.0]), np.array([0.0, 100.0])).tolist() == pytest.approx(
        [0, 200 / 3]
    )
