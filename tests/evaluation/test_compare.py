from __future__ import annotations

import dataclasses
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest

from refiner_cli.config import Config
from refiner_cli.errors import ScoresError, UsageError
from refiner_cli.evaluation.compare import Side, compare
from refiner_cli.evaluation.evaluate import Asked, assess_scores
from refiner_cli.evaluation.metrics.bootstrap import NAMES
from refiner_cli.evaluation.result import Result
from tests.evaluation.test_score_files import CASE, saved


def result(folder: Path, gain: float) -> Result:
    """The case with its true scores raised."""
    scores = CASE.scores.copy()
    scores[np.arange(30), CASE.truth] += np.float32(gain)
    return assess_scores(saved(folder, scores=scores), Asked(draws=50))


@pytest.fixture
def sides(tmp_path: Path) -> list[Side]:
    configs = [Config(seed=0), Config(seed=1, device="cpu"), Config(method="csp")]
    return [
        Side(f"run{i}", config, result(tmp_path, gain))
        for i, (config, gain) in enumerate(zip(configs, (0, 0.2, 3), strict=True))
    ]


def test_differences_are_to_the_first(sides: list[Side]) -> None:
    found = compare(sides)
    assert list(found.against_first) == ["run1", "run2"]
    aucs = [side.result.worlds["given"].metrics.AUC for side in sides]
    difference = found.against_first["run2"]["given"]["AUC"]
    assert difference.value == aucs[2] - aucs[0]
    assert difference.value > 0


def test_seeds_of_one_setting_have_mean_and_deviation(sides: list[Side]) -> None:
    (spread,) = compare(sides).spreads
    assert spread.runs == ("run0", "run1")
    for name in NAMES:
        values = [getattr(side.result.worlds["given"].metrics, name) for side in sides[:2]]
        assert spread.worlds["given"][name] == (mean(values), stdev(values))


def test_exported_models_form_no_group(sides: list[Side]) -> None:
    assert compare([dataclasses.replace(side, config=None) for side in sides]).spreads == ()


def test_one_run_or_other_images_cannot_be_compared(sides: list[Side], tmp_path: Path) -> None:
    for few in ([], sides[:1], [sides[0], sides[0]]):
        with pytest.raises(UsageError):
            compare(few)
    other = assess_scores(saved(tmp_path, truth=CASE.truth[::-1].copy()), Asked(draws=2))
    with pytest.raises(ScoresError, match="Image 0"):
        compare([sides[0], Side("other", None, other)])
