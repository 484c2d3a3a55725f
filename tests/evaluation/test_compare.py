from __future__ import annotations

import dataclasses
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest

from refiner_cli.config import Config
from refiner_cli.errors import ScoresError, UsageError
from refiner_cli.evaluation.compare import EvaluatedRun, compare_runs
from refiner_cli.evaluation.evaluate import EvalOptions, evaluate_score_file
from refiner_cli.evaluation.result import Result
from refiner_cli.metric_names import METRIC_NAMES
from tests.evaluation.test_score_files import CASE, saved


def result(folder: Path, gain: float) -> Result:
    """The case with its true scores raised."""
    scores = CASE.scores.copy()
    scores[np.arange(30), CASE.truth] += np.float32(gain)
    return evaluate_score_file(saved(folder, scores=scores), EvalOptions(bootstrap_samples=50))


@pytest.fixture
def sides(tmp_path: Path) -> list[EvaluatedRun]:
    configs = [Config(seed=0), Config(seed=1, device="cpu"), Config(method="csp")]
    return [
        EvaluatedRun(f"run{i}", config, result(tmp_path, gain))
        for i, (config, gain) in enumerate(zip(configs, (0, 0.2, 3), strict=True))
    ]


def test_differences_are_to_the_first(sides: list[EvaluatedRun]) -> None:
    found = compare_runs(sides)
    assert list(found.against_first) == ["run1", "run2"]
    aucs = [side.result.worlds["given"].metrics.AUC for side in sides]
    difference = found.against_first["run2"]["given"]["AUC"]
    assert difference.value == aucs[2] - aucs[0]
    assert difference.value > 0


def test_seeds_of_one_setting_have_mean_and_deviation(sides: list[EvaluatedRun]) -> None:
    (spread,) = compare_runs(sides).seeds
    assert spread.runs == ("run0", "run1")
    for name in METRIC_NAMES:
        values = [getattr(side.result.worlds["given"].metrics, name) for side in sides[:2]]
        assert spread.worlds["given"][name] == (mean(values), stdev(values))


def test_only_other_seeds_on_the_same_data_are_averaged(sides: list[EvaluatedRun]) -> None:
    zero, one, _ = sides

    def groups(*several: EvaluatedRun) -> list[tuple[str, ...]]:
        return [group.runs for group in compare_runs(several).seeds]

    copy = dataclasses.replace(zero, name="copy")
    elsewhere = dataclasses.replace(copy, config=Config(seed=0, device="cpu", precision="bf16"))
    for repeated in (copy, elsewhere):
        assert groups(zero, repeated) == []
        assert groups(zero, one, repeated) == groups(zero, repeated, one) == [("run0", "run1")]
    other_data = dataclasses.replace(one, data=("another",))
    assert groups(zero, other_data) == []
    assert groups(dataclasses.replace(zero, data=("another",)), other_data) == [("run0", "run1")]


def test_exported_models_form_no_group(sides: list[EvaluatedRun]) -> None:
    assert compare_runs([dataclasses.replace(side, config=None) for side in sides]).seeds == ()


def test_one_run_or_other_images_cannot_be_compared(sides: list[EvaluatedRun], tmp_path: Path) -> None:
    for few in ([], sides[:1], [sides[0], sides[0]]):
        with pytest.raises(UsageError):
            compare_runs(few)
    other = evaluate_score_file(
        saved(tmp_path, truth=CASE.truth[::-1].copy()), EvalOptions(bootstrap_samples=2)
    )
    with pytest.raises(ScoresError, match="Image 0"):
        compare_runs([sides[0], EvaluatedRun("other", None, other)])


def test_other_candidates_or_other_seen_pairs_are_said(sides: list[EvaluatedRun], tmp_path: Path) -> None:
    assert compare_runs(sides).notes == ()
    options, few = EvalOptions(bootstrap_samples=2), CASE.allowed.copy()
    few[np.setdiff1d(np.flatnonzero(CASE.allowed), CASE.truth)[:1]] = False
    few[np.flatnonzero(~CASE.allowed)[:1]] = True  # as many, but others
    narrow = EvaluatedRun("narrow", None, evaluate_score_file(saved(tmp_path, allowed=few), options))
    whole = EvaluatedRun("whole", None, evaluate_score_file(saved(tmp_path, allowed=None), options))
    seen = ~CASE.space.seen
    other = EvaluatedRun("other", None, evaluate_score_file(saved(tmp_path, seen=seen), options))
    said = compare_runs([sides[0], narrow, whole, other]).to_json()["notes"]
    count = np.count_nonzero(CASE.allowed)
    assert [line.split(",")[0].split(":")[0] for line in said] == [
        f"narrow has {np.count_nonzero(few)} candidates and run0 {count}",
        f"whole has {len(CASE.allowed)} candidates and run0 {count}",
        "other and run0 disagree on which pairs training saw",
    ]
