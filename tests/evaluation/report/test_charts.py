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
    found = seen_unseen_curve(case.summary(), protocol)
    assume(found.area is not None)
    frame = charts.Frame("u", "s", width=10_000, height=10_000)
    corners = np.array([corner.split() for corner in charts.outline(frame, found).split("L")], float)
    share = (corners - [frame.x(0), frame.y(0)]) / [frame.x(100) - frame.x(0), frame.y(100) - frame.y(0)]
    drawn = 100 * np.sum(np.diff(share[:, 0]) * (share[1:, 1] + share[:-1, 1]) / 2)
    assert drawn == pytest.approx(found.area, abs=0.01)


def drawings() -> list[str]:
    summary = CASE.summary()
    points = seen_unseen_curve(summary)
    line = charts.ChartLine(
        "closed", points, [charts.Mark(shape, 10, 20, "a <b>") for shape in ("dot", "square")]
    )
    return [
        charts.seen_unseen([line]),
        charts.calibration([("closed", reliability(summary))]),
        charts.confusion_map(confusion(summary, CASE.space, "object")),
        charts.tried([(0.0, 3.0), (1.0, 4.0)], 1.0, "lambda"),
        charts.tried([(0.5, 0.0)], 0.5, "threshold"),
    ]


@pytest.mark.parametrize("svg", drawings())
def test_every_chart_is_well_formed_with_finite_numbers(svg: str) -> None:
    root = ET.fromstring(svg)  # noqa: S314
    assert root.attrib["role"] == "img"
    for element in root.iter():
        for name in ("x", "y", "cx", "cy", "r", "width", "height"):
            assert math.isfinite(float(element.attrib.get(name, 0)))
        assert "nan" not in element.attrib.get("d", "")


@given(st.floats(-5, 5), st.floats(0.001, 200))
def test_ticks_are_few_round_and_inside(low: float, span: float) -> None:
    found = charts.ticks(low, low + span)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-6 <= tick <= low + span + 1e-6 for tick in found)


def test_the_diagonal_is_right_and_the_rest_wrong() -> None:
    svg = charts.confusion_map(confusion(CASE.summary(), CASE.space, "state"))
    assert svg.count('class="right"') == 3
    assert svg.count('class="wrong"') == 6
