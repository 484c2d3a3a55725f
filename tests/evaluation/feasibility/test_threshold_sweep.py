from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from refiner_cli.core.models.calibration import Calibration
from refiner_cli.evaluation.feasibility.feasibility import make_adjustment
from refiner_cli.evaluation.feasibility.threshold_sweep import ThresholdStream
from refiner_cli.evaluation.metrics.bias_sweep import seen_unseen_curve
from refiner_cli.evaluation.metrics.streaming import ScoreStream
from tests.evaluation.cases import CASES, Case


@given(CASES, st.integers(0, 1000), st.integers(1, 6))
def test_one_pass_gives_the_curve_of_every_threshold(case: Case, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    feasible = np.where(case.space.seen, 0, rng.integers(-4, 5, len(case.space.pairs)) / 4)
    # A threshold that leaves no candidate at all cannot be asked for: the grid ends at the largest value.
    thresholds = np.linspace(-1, feasible[~case.space.seen].max(initial=-1), count).tolist()
    stream = ThresholdStream(case.space, Calibration(), feasible, thresholds)
    scores, truth = torch.from_numpy(case.scores), torch.from_numpy(case.truth)
    for rows in torch.arange(len(truth)).split(17):
        stream.update(scores[rows], truth[rows])
    for threshold, found in zip(thresholds, stream.curves(), strict=True):
        mask = make_adjustment("mask", threshold, case.space, feasible, "exact")
        alone = ScoreStream(case.space, mask.allowed)
        alone.update(scores, truth)
        expected = seen_unseen_curve(alone.summary())
        assert found.bias.tolist() == expected.bias.tolist()
        assert found.seen_correct.tolist() == expected.seen_correct.tolist()
        assert found.unseen_correct.tolist() == expected.unseen_correct.tolist()
