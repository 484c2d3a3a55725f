from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from refiner_cli.evaluation.metrics.bias_sweep import seen_unseen_curve
from refiner_cli.evaluation.metrics.breakdown import confusion, reliability
from refiner_cli.evaluation.report import charts
from tests.evaluation.cases import CASES, Case, make_case

CASE = make_case(4, images=120, skill=2.0)


@given(CASES, st.sampled_from(["exact", "legacy"]))
def test_the_area_under_the_drawn_curve_is_the_auc(case: Case, protocol: str) -> None:
    curve = seen_unseen_curve(case.summary(), protocol)
    assume(curve.area is not None)
    share = np.array(charts.curve_corners(curve)) / 100
    drawn = 100 * np.sum(np.diff(share[:, 0]) * (share[1:, 1] + share[:-1, 1]) / 2)
    assert drawn == pytest.approx(curve.area)


def drawings() -> list[str]:
    summary = CASE.summary()
    points = [charts.OperatingPoint(marker, 10, 20, "a <b>") for marker in ("dot", "ring", "square")]
    world = charts.WorldCurve("series-1", seen_unseen_curve(summary), points)
    return [
        charts.seen_unseen_chart([world]),
        charts.calibration_chart([("series-1", reliability(summary))]),
        charts.confusion_map(confusion(summary, CASE.space, "object")),
        charts.validation_chart([(0.0, 3.0), (1.0, 4.0)], 1.0, "lambda", "series-2"),
        charts.validation_chart([(0.5, 0.0)], 0.5, "threshold", "series-2"),
    ]


@pytest.mark.parametrize("svg", drawings())
def test_every_chart_is_well_formed_with_finite_numbers(svg: str) -> None:
    root = ET.fromstring(svg)  # noqa: S314
    assert root.attrib["role"] == "img"
    for element in root.iter():
        for name in ("x", "y", "cx", "cy", "r", "width", "height"):
            assert math.isfinite(float(element.attrib.get(name, 0)))
        assert "nan" not in element.attrib.get("d", "")


def test_the_diagonal_is_right_and_the_rest_wrong() -> None:
    svg = charts.confusion_map(confusion(CASE.summary(), CASE.space, "state"))
    assert svg.count('class="right"') == 3
    assert svg.count('class="wrong"') == 6
