from __future__ import annotations

import json
import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refiner_cli.data.labels import LabelSpace
from refiner_cli.evaluation.metrics.bias_sweep import seen_unseen_curve, sweep
from refiner_cli.evaluation.metrics.seen_unseen import SeenUnseenCurve, harmonic_mean
from refiner_cli.evaluation.metrics.streaming import ScoreStream
from tests.evaluation.cases import CASES, Case, make_case, published, scanned


@settings(max_examples=300, deadline=None)
@given(CASES)
def test_legacy_is_the_published_algorithm(case: Case) -> None:
    metrics = sweep(case.summary(), case.space, "legacy").to_json()
    for name, value in published(case).items():
        if name == "bias" or value is None:
            assert metrics[name] == value
        else:
            assert metrics[name] == pytest.approx(100 * value, abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(CASES)
def test_exact_is_an_exhaustive_scan_of_the_bias(case: Case) -> None:
    metrics = sweep(case.summary(), case.space, "exact").to_json()
    for name, value in scanned(case).items():
        expected = None if value is None else pytest.approx(100 * value, abs=1e-9)
        assert metrics[name] == expected, name


@settings(max_examples=100, deadline=None)
@given(CASES)
def test_exact_area_is_the_share_of_image_pairs_with_a_common_bias(case: Case) -> None:
    summary = case.summary()
    change, seen = summary.breakpoints(), summary.truth_seen
    together = change[seen][:, None] > change[~seen][None, :]
    expected = pytest.approx(100 * together.mean(), abs=1e-9) if together.size else None
    assert expected == sweep(summary, case.space).AUC


@settings(max_examples=100, deadline=None)
@given(CASES)
def test_the_reported_bias_reaches_the_reported_harmonic_mean(case: Case) -> None:
    summary = case.summary()
    metrics = sweep(summary, case.space)
    if metrics.HM:
        assert metrics.bias is not None
        assert math.isfinite(metrics.bias)
        right = summary.correct(metrics.bias)
        s, u = right[summary.truth_seen].mean(), right[~summary.truth_seen].mean()
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
    summary = case.summary(500)
    assert 0 < sweep(summary, case.space).AUC - sweep(summary, case.space, "legacy").AUC < 1


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
    points = seen_unseen_curve(case.summary(), protocol)
    assert np.all(np.diff(points.bias) >= 0)
    assert np.all(np.diff(points.seen) <= 0)
    assert np.all(np.diff(points.unseen) >= 0)
    assert points.harmonic[points.best] == points.harmonic.max()


def test_the_exact_curve_visits_every_breakpoint() -> None:
    case = make_case(6, images=200, skill=2.0)
    summary = case.summary()
    finite = summary.breakpoints()[np.isfinite(summary.breakpoints())]
    assert len(seen_unseen_curve(summary).bias) == len(np.unique(finite)) + 1


def test_take_repeats_and_drops_images() -> None:
    case = make_case(7)
    summary = case.summary()
    assert summary.select(np.array([3, 3, 5])).truth.tolist() == summary.truth[[3, 3, 5]].tolist()
    assert len(summary.select(summary.truth_seen)) == np.count_nonzero(summary.truth_seen)


def test_harmonic_mean_of_zeros_is_zero_and_of_nothing_is_nothing() -> None:
    assert math.isnan(harmonic_mean(np.array([np.nan]), np.array([50.0]))[0])
    assert harmonic_mean(np.array([0.0, 50.0]), np.array([0.0, 100.0])).tolist() == pytest.approx(
        [0, 200 / 3]
    )


@pytest.mark.parametrize("protocol", ["exact", "legacy"])
@pytest.mark.parametrize(("only", "missing"), [("seen", "unseen"), ("unseen", "seen")])
def test_without_images_of_one_side_its_metrics_are_undefined_and_not_zero(
    protocol: str, only: str, missing: str
) -> None:
    case = make_case(6, only=only, skill=2.0)
    metrics = sweep(case.summary(), case.space, protocol)
    lost, kept = ("U", "S") if missing == "unseen" else ("S", "U")
    assert (metrics.HM, metrics.AUC, metrics.bias, getattr(metrics, lost)) == (None, None, None, None)
    if (protocol, missing) == ("legacy", "unseen"):  # its biases are taken from the missing images
        assert (metrics.S, metrics.selection_metric()) == (None, ("state_acc", metrics.state_acc))
        assert set(metrics.undefined()) == {"S", "U", "HM", "AUC"}
    else:
        assert getattr(metrics, kept) > 0
        assert metrics.selection_metric() == (kept, getattr(metrics, kept))
        assert set(metrics.undefined()) == {lost, "HM", "AUC"}
    assert set(metrics.undefined().values()) == {f"no image of {missing} pairs"}
    json.dumps(metrics.to_json(), allow_nan=False)


def test_with_images_on_both_sides_everything_is_defined_and_auc_selects() -> None:
    case = make_case(4)
    metrics = sweep(case.summary(), case.space)
    assert metrics.undefined() == {}
    assert metrics.selection_metric() == ("AUC", metrics.AUC)


def test_legacy_breaks_ties_of_the_harmonic_mean_as_fractions_do() -> None:
    """In percent, rounding makes another one of equal means the largest; every small case is tried."""
    differ = 0
    for n_seen, n_unseen in product(range(1, 13), repeat=2):
        counts = list(product(range(1, n_seen + 1), range(1, n_unseen + 1)))
        mean = {(a, b): 2 * (a / n_seen) * (b / n_unseen) / (a / n_seen + b / n_unseen) for a, b in counts}
        for (a, b), (c, d) in combinations(counts, 2):
            if a * b * (c * n_unseen + d * n_seen) != c * d * (a * n_unseen + b * n_seen):
                continue  # the means are not equal
            curve = SeenUnseenCurve(
                np.array([0.0, 1.0]), np.array([a, c]), np.array([b, d]), n_seen, n_unseen, "legacy"
            )
            assert curve.best == (0 if mean[a, b] >= mean[c, d] else 1)
            differ += curve.best != int(np.argmax(harmonic_mean(curve.seen, curve.unseen)))
    assert differ > 0


@settings(max_examples=100, deadline=None)
@given(CASES, st.sampled_from(["exact", "legacy"]))
def test_every_bias_of_a_curve_is_finite(case: Case, protocol: str) -> None:
    assert np.isfinite(seen_unseen_curve(case.summary(), protocol).bias).all()
