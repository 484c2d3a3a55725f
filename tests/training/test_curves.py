from __future__ import annotations

import re
from pathlib import Path

import pytest

from refiner_cli.training.curves import MAX_POINTS, averaged, draw_chart, write_curves
from refiner_cli.training.run_dir import Run


def test_the_page_of_a_run_has_its_charts(small_run: Path) -> None:
    write_curves(Run.open(small_run))
    text = (small_run / "curves.html").read_text("utf-8")
    assert text.count("<svg") == 5
    for name in ("loss", "S", "U", "HM", "AUC", "norm", "lr", "seconds", "waited"):
        assert re.search(rf">&#9473; {name} [-\d.]", text)
    assert "nan" not in text


def test_an_undefined_metric_has_no_line() -> None:
    rows = [{"step": 1, "S": 50.0, "U": None, "AUC": None}, {"step": 2, "S": 60.0, "U": None, "AUC": None}]
    chart = draw_chart("Validation", rows, ["S", "U", "AUC"])
    assert [name for _, name, _ in chart.key] == ["S"]
    nothing = draw_chart("Validation", rows, ["U", "AUC"])
    assert (nothing.svg, nothing.missing) == (None, "U, AUC: undefined so far.")
    assert draw_chart("Validation", [], ["U"]).missing == "No values yet."


@pytest.mark.parametrize("count", [1, MAX_POINTS, MAX_POINTS + 1, 10 * MAX_POINTS])
def test_long_series_are_averaged(count: int) -> None:
    points = averaged([{"step": i, "loss": 1.0} for i in range(1, count + 1)], "loss")
    assert len(points) <= MAX_POINTS
    assert points[-1] == (count, 1.0)
