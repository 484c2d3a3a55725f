from __future__ import annotations

import numpy as np
import pytest

from refiner_cli.errors import ScoresError
from refiner_cli.evaluation.metrics.bias_sweep import sweep
from refiner_cli.evaluation.metrics.bootstrap import (
    METRIC_NAMES,
    MeasuredSplit,
    bootstrap_indices,
    differences,
    intervals,
    resample,
    top_k_intervals,
)
from refiner_cli.evaluation.metrics.breakdown import top_k
from tests.evaluation.cases import make_case

CASE = make_case(21, images=200, skill=2.0)
DIGEST = CASE.summary(200)


@pytest.mark.parametrize("protocol", ["exact", "legacy"])
def test_every_metric_lies_in_its_interval(protocol: str) -> None:
    found = intervals(resample(DIGEST, CASE.space, protocol, draws=200))
    metrics = sweep(DIGEST, CASE.space, protocol)
    assert set(found) == {*METRIC_NAMES, "bias"}
    for name in METRIC_NAMES:
        interval = found[name]
        assert interval.low < getattr(metrics, name) < interval.high
    assert found["bias"].low <= metrics.bias <= found["bias"].high


def test_intervals_of_a_share_have_the_binomial_width() -> None:
    interval = intervals(resample(DIGEST, CASE.space, draws=600))["state_acc"]
    share = sweep(DIGEST, CASE.space).state_acc / 100
    assert interval.high - interval.low == pytest.approx(
        100 * 2 * 1.96 * np.sqrt(share * (1 - share) / 200), rel=0.15
    )


def test_the_seed_decides_the_draws() -> None:
    first, again, other = (resample(DIGEST, CASE.space, draws=5, seed=seed)["AUC"] for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_a_method_does_not_differ_from_itself() -> None:
    side = MeasuredSplit(DIGEST, CASE.space)
    for found in differences(side, side, draws=20).values():
        assert (found.value, found.interval.low, found.interval.high, found.sure) == (0, 0, 0, False)


def test_a_better_method_is_surely_better() -> None:
    scores = CASE.scores.copy()
    scores[np.arange(200), CASE.truth] += 1
    better = type(CASE)(CASE.space, scores, CASE.truth, CASE.allowed)
    found = differences(
        MeasuredSplit(DIGEST, CASE.space), MeasuredSplit(better.summary(), CASE.space), draws=100
    )
    assert found["AUC"].sure
    assert found["AUC"].value > 0
    assert found["AUC"].value == sweep(better.summary(), CASE.space).AUC - sweep(DIGEST, CASE.space).AUC


def test_other_images_cannot_be_compared() -> None:
    side = MeasuredSplit(DIGEST, CASE.space)
    with pytest.raises(ScoresError, match="199"):
        differences(side, MeasuredSplit(DIGEST.select(np.arange(199)), CASE.space))
    swapped = np.arange(200)[::-1]
    with pytest.raises(ScoresError, match="Image"):
        differences(side, MeasuredSplit(DIGEST.select(swapped), CASE.space))


def test_top_k_has_intervals_from_the_same_draws() -> None:
    spans = top_k_intervals(DIGEST, (1, 12), draws=200)
    for group, share in top_k(DIGEST, (1,))[1].items():
        assert spans[1][group].low < share < spans[1][group].high
        assert (spans[12][group].low, spans[12][group].high) == (100, 100)
    accuracy = [float(np.mean(DIGEST.correct()[images])) for images in bootstrap_indices(200, 200, 0)]
    assert spans[1]["all"].high == pytest.approx(100 * np.quantile(accuracy, 0.975))
