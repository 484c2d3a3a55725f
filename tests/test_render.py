"""Pages, charts and thumbnails: escaped, round, uncut, sharp."""

from __future__ import annotations

import base64
import io
import math
import xml.etree.ElementTree as ET
from importlib import resources
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from refiner_cli.render import (
    CHARACTER_WIDTH,
    Axes,
    Series,
    data_url,
    element,
    line_chart,
    new_svg,
    round_range,
    series_styles,
    thumbnail,
    tick_values,
    to_markup,
    write_page,
)

HOSTILE = "<script>\"&'</script>"
PACKAGE = Path(str(resources.files("refiner_cli")))


@given(st.floats(-50, 50), st.floats(1e-3, 1e7))
def test_ticks_are_few_round_and_inside(start: float, span: float) -> None:
    low = start * span
    found = tick_values(low, low + span)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-3 * span <= tick <= low + span * 1.001 for tick in found)
    step = found[1] - found[0]
    digit = step / 10 ** math.floor(math.log10(step) + 1e-3)
    assert min(abs(digit - round_digit) for round_digit in (1, 2, 5)) < 0.02


@given(st.floats(-1e4, 1e4), st.floats(0, 1e5))
def test_a_round_range_holds_the_range_and_ends_in_ticks(low: float, span: float) -> None:
    bottom, top = round_range(low, low + span)
    slack = 1e-5 * (abs(low) + span + 1)
    assert bottom - slack <= low
    assert top + slack >= low + span
    assert top > bottom


@pytest.mark.parametrize("scale", [1e-7, 1e-4, 1.0, 1e3, 1e7])
@pytest.mark.parametrize("values", [[0.0], [3.0], [-2.0, 5.0], [0.1, 0.2, 0.3]])
def test_no_label_of_a_chart_is_cut(values: list[float], scale: float) -> None:
    points = [(float(i), value * scale) for i, value in enumerate(values)]
    axes = line_chart("n", [Series("a", points)], "step", "percent")
    assert axes is not None
    svg = ET.fromstring(axes.markup())  # noqa: S314 - our own
    for text in svg.iter("text"):
        if "transform" in text.attrib:
            continue
        x, width = float(text.attrib["x"]), CHARACTER_WIDTH * len(text.text or "")
        anchor = text.attrib["text-anchor"]
        left = x - width if anchor == "end" else x - width / 2
        assert left >= 0
        assert left + width <= axes.width + 0.1
        assert 0 <= float(text.attrib["y"]) <= axes.height


def test_a_line_stays_inside_the_axes() -> None:
    axes = Axes("n", "x", "y", 0, 10, 0, 100)
    left, floor = axes.place(0, 0)
    right, ceiling = axes.place(10, 100)
    assert 0 < left < right < axes.width
    assert 0 < ceiling < floor < axes.height


def test_charts_escape_their_texts() -> None:
    svg = new_svg(10, 10, HOSTILE)
    element(svg, "text", HOSTILE, class_="tick", text_anchor="end")
    text = to_markup(svg)
    assert "<script" not in text
    assert ET.fromstring(text)[0].text == HOSTILE  # noqa: S314
    assert 'class="tick" text-anchor="end"' in text


def test_a_chart_without_values_is_none_and_one_value_is_a_dot() -> None:
    assert line_chart("n", [Series("a", [])], "x", "y") is None
    axes = line_chart("n", [Series("a", [(0.0, 0.0)])], "x", "y")
    assert axes is not None
    assert "<circle" in axes.markup()
    assert "nan" not in axes.markup()


def test_lines_have_styles_by_position_or_their_own() -> None:
    series = [Series(str(i), [], "own" if i == 1 else "") for i in range(6)]
    assert series_styles(series) == ["series-1", "own", "series-3", "series-4", "series-1", "series-2"]


@pytest.mark.parametrize("size", [(10, 10), (1000, 20), (20, 1000), (640, 480)])
def test_a_thumbnail_is_a_square_of_its_size_and_fits_in_a_page(size: tuple[int, int]) -> None:
    square = thumbnail(Image.new("RGBA", size, (200, 30, 30, 255)), 64)
    assert square.size == (64, 64)
    head, _, data = data_url(square).partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (64, 64)


def templates() -> list[str]:
    return sorted(file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.html"))


@pytest.mark.parametrize("template", templates())
def test_every_page_extends_the_one_page_and_loads_nothing(template: str) -> None:
    text = (PACKAGE / template).read_text("utf-8")
    assert template == "page.html" or text.startswith('{% extends "page.html" %}')
    for outside in ("http:", "https:", "<link", "@import", "url("):
        assert outside not in text
    assert "|safe" not in text


def test_a_page_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    def broken():  # type: ignore[no-untyped-def]
        yield from []
        raise RuntimeError

    file = tmp_path / "page.html"
    with pytest.raises(RuntimeError):
        write_page(file, "training/curves.html", title="t", subtitle="s", charts=broken())
    with pytest.raises(jinja2.UndefinedError):
        write_page(file, "training/curves.html", title="t", charts=[])
    assert list(tmp_path.iterdir()) == []
    write_page(file, "training/curves.html", title=HOSTILE, subtitle="s", charts=[])
    assert "<script" not in file.read_text("utf-8")


def test_numbers_in_attributes_are_short() -> None:
    svg = new_svg(1, 1, "n")
    element(svg, "circle", cx=1 / 3, r=2)
    assert 'cx="0.3" r="2"' in to_markup(svg)
    assert math.isclose(float(svg[0].attrib["cx"]), 0.3)
