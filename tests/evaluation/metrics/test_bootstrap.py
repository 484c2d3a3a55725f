from __future__ import annotations

import numpy as np
import pytest

from refiner_cli.errors import ScoresError
from refiner_cli.evaluation.metrics.bias_sweep import sweep
from refiner_cli.evaluation.metrics.bootstrap import (
    MeasuredSplit,
    bootstrap_indices,
    differences,
    intervals,
    resample,
    top_k_intervals,
)
from refiner_cli.evaluation.metrics.breakdown import top_k
from refiner_cli.metric_names import METRIC_NAMES
from tests.evaluation.cases import make_case

CASE = make_case(21, images=200, skill=2.0)
SUMMARY = CASE.summary(200)


@pytest.mark.parametrize("protocol", ["exact", "legacy"])
def test_every_metric_lies_in_its_interval(protocol: str) -> None:
    found = intervals(resample(SUMMARY, CASE.space, protocol, bootstrap_samples=200))
    metrics = sweep(SUMMARY, CASE.space, protocol)
    assert set(found) == {*METRIC_NAMES, "bias"}
    for name in METRIC_NAMES:
        interval = found[name]
        assert interval.low < getattr(metrics, name) < interval.high
    assert found["bias"].low <= metrics.bias <= found["bias"].high


def test_intervals_of_a_share_have_the_binomial_width() -> None:
    interval = intervals(resample(SUMMARY, CASE.space, bootstrap_samples=600))["state_acc"]
    share = sweep(SUMMARY, CASE.space).state_acc / 100
    assert interval.high - interval.low == pytest.approx(
        100 * 2 * 1.96 * np.sqrt(share * (1 - share) / 200), rel=0.15
    )


def test_the_seed_decides_the_samples() -> None:
    first, again, other = (
        resample(SUMMARY, CASE.space, bootstrap_samples=5, seed=seed)["AUC"] for seed in (1, 1, 2)
    )
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_a_method_does_not_differ_from_itself() -> None:
    side = MeasuredSplit(SUMMARY, CASE.space)
    for found in differences(side, side, bootstrap_samples=20).values():
        assert (found.value, found.interval.low, found.interval.high, found.sure) == (0, 0, 0, False)


def test_a_better_method_is_surely_better() -> None:
    scores = CASE.scores.copy()
    scores[np.arange(200), CASE.truth] += 1
    better = type(CASE)(CASE.space, scores, CASE.truth, CASE.allowed)
    found = differences(
        MeasuredSplit(SUMMARY, CASE.space), MeasuredSplit(better.summary(), CASE.space), bootstrap_samples=100
    )
    assert found["AUC"].sure
    assert found["AUC"].value > 0
    assert found["AUC"].value == sweep(better.summary(), CASE.space).AUC - sweep(SUMMARY, CASE.space).AUC


def test_other_images_cannot_be_compared() -> None:
    side = MeasuredSplit(SUMMARY, CASE.space)
    with pytest.raises(ScoresError, match="199"):
        differences(side, MeasuredSplit(SUMMARY.select(np.arange(199)), CASE.space))
    swapped = np.arange(200)[::-1]
    with pytest.raises(ScoresError, match="Image"):
        differences(side, MeasuredSplit(SUMMARY.select(swapped), CASE.space))


def test_top_k_has_intervals_from_the_same_samples() -> None:
    spans = top_k_intervals(SUMMARY, (1, 12), bootstrap_samples=200)
    for group, share in top_k(SUMMARY, (1,))[1].items():
        assert spans[1][group].low < share < spans[1][group].high
        assert (spans[12][group].low, spans[12][group].high) == (100, 100)
    accuracy = [float(np.mean(SUMMARY.correct()[images])) for images in bootstrap_indices(200, 200, 0)]
    assert spans[1]["all"].high == pytest.approx(100 * np.quantile(accuracy, 0.975))


def test_metrics_that_are_undefined_have_neither_interval_nor_difference() -> None:
    case = make_case(6, only="seen", skill=2.0)
    measured = MeasuredSplit(case.summary(), case.space)
    found = intervals(resample(measured.summary, case.space, bootstrap_samples=20))
    assert [name for name, span in found.items() if span is None] == ["U", "HM", "AUC", "bias"]
    compared = differences(measured, measured, bootstrap_samples=20)
    assert [name for name, d in compared.items() if d.value is None] == ["U", "HM", "AUC"]
    assert all((d.interval is None) == (d.value is None) and not d.sure for d in compared.values())
    assert compared["U"].to_json() == {"value": None, "interval": None, "sure": False}
    assert top_k(measured.summary, (1,))[1]["unseen"] is None
    assert top_k_intervals(measured.summary, (1,), bootstrap_samples=20)[1]["unseen"] is None


def test_samples_without_an_unseen_image_do_not_count_as_zero() -> None:
    """One unseen image, always right: a third of the samples lack it, and U is 100 in every other."""
    case = make_case(1, skill=50.0)
    unseen = np.flatnonzero(~case.summary().truth_seen)
    few = case.summary().select(np.append(np.flatnonzero(case.summary().truth_seen), unseen[:1]))
    samples = resample(few, case.space, bootstrap_samples=50)
    assert 0 < np.isnan(samples["U"]).sum() < 50
    span = intervals(samples)["U"]
    assert span is not None
    assert (span.low, span.high) == (100, 100)
