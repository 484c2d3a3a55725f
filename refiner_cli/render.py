"""What every HTML page of the package is made with: the page, line charts as inline SVG, thumbnails.

A page is one file that needs no network and, except for the gallery, no script. It is a Jinja2 template
that extends ``page.html`` and lies beside the module that fills it; every value is escaped. SVG is built
as an element tree, which escapes too. Colours come from the style sheet of ``page.html`` by class, so
that light and dark both work.
"""

from __future__ import annotations

import base64
import functools
import io
import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup
from PIL import Image, ImageOps

from refiner_cli.files import atomic_file

CHARACTER_WIDTH = 6.3  # of a label in the charts, about
HEAD_ROOM = 10  # pixels above the highest value
AXIS_HEIGHT = 44  # below the axes: tick labels and the name of the axis
SERIES_STYLES = 4  # classes series-1 to series-4 of the style sheet

Points = Sequence[tuple[float, float]]


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("refiner_cli", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(file: Path, template: str, /, **values: object) -> None:
    """Fill a template and write it atomically, piece by piece: iterators are never held in memory.

    Args:
        template: its path below the package, such as ``training/curves.html``.
    """
    pieces = _environment().get_template(template).generate(**values)
    with (
        atomic_file(file) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream,
    ):  # names of files need not be UTF-8
        stream.writelines(pieces)


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """The central square of an image, ``side`` pixels wide; small images are enlarged."""
    return ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)


def data_url(image: Image.Image, *, quality: int = 82) -> str:
    """An image as a JPEG inside a page, for the ``src`` of an ``img`` element."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def tick_values(low: float, high: float) -> list[float]:
    """About five round numbers from ``low`` to ``high``."""
    step = _tick_step(low, high)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{step * i:.6g}") for i in range(first, last + 1)]


def round_range(low: float, high: float) -> tuple[float, float]:
    """The range widened to round numbers; one (almost) without a width gets one."""
    size = max(abs(low), abs(high), 1e-300)
    if high - low <= 1e-4 * size:  # labels have six digits
        high = low + (size if size > 1e-300 else 1.0)
    step = _tick_step(low, high)
    bottom, top = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return float(f"{bottom:.6g}"), float(f"{top:.6g}")


def _tick_step(low: float, high: float) -> float:
    span = (high - low) or 1.0
    step: float = 10.0 ** math.floor(math.log10(span / 4))
    return step * next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6)


def element(parent: ET.Element, tag: str, text: str | None = None, /, **attributes: object) -> ET.Element:
    """Add an SVG element. ``class_`` is ``class``, other ``_`` are ``-``; numbers get one decimal."""
    values = {
        name.rstrip("_").replace("_", "-"): f"{value:.1f}" if isinstance(value, float) else str(value)
        for name, value in attributes.items()
    }
    child = ET.SubElement(parent, tag, values)
    child.text = text
    return child


def new_svg(width: float, height: float, name: str) -> ET.Element:
    """An ``svg`` element; ``name`` is what a screen reader says."""
    size = {"viewBox": f"0 0 {width:.0f} {height:.0f}", "width": f"{width:.0f}", "height": f"{height:.0f}"}
    return ET.Element("svg", {**size, "role": "img", "aria-label": name})


def to_markup(svg: ET.Element) -> Markup:
    """An SVG tree for a page; it is escaped already."""
    return Markup(ET.tostring(svg, encoding="unicode"))  # noqa: S704 - a tree, serialised


def path_data(points: Points) -> str:
    """Pixel coordinates as the ``d`` attribute of a path."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


@dataclass
class Axes:
    """A chart's axes over [low, high] x [bottom, top]: round ticks, and room for their labels.

    Draw on ``svg`` with coordinates from :meth:`place`; :meth:`markup` gives the finished chart.
    """

    name: str
    x_label: str
    y_label: str
    low: float
    high: float
    bottom: float
    top: float
    width: int = 460
    height: int = 330
    svg: ET.Element = field(init=False)

    def __post_init__(self) -> None:
        rows, columns = tick_values(self.bottom, self.top), tick_values(self.low, self.high)
        self._left = 34 + CHARACTER_WIDTH * max((len(f"{value:g}") for value in rows), default=0)
        self._right = self.width - 6 - CHARACTER_WIDTH * max((len(f"{v:g}") for v in columns), default=0) / 2
        self._floor = self.height - AXIS_HEIGHT
        self.svg = new_svg(self.width, self.height, self.name)
        for value in rows:
            y = self.place(self.low, value)[1]
            element(self.svg, "path", class_="grid", d=f"M{self._left:.1f} {y:.1f}H{self._right:.1f}")
            element(
                self.svg, "text", f"{value:g}", class_="tick", x=self._left - 6, y=y + 4, text_anchor="end"
            )
        for value in columns:
            x = self.place(value, self.bottom)[0]
            element(
                self.svg, "text", f"{value:g}", class_="tick", x=x, y=self._floor + 16.0, text_anchor="middle"
            )
        middle = (self._left + self._right) / 2
        element(self.svg, "text", self.x_label, x=middle, y=self.height - 8.0, text_anchor="middle")
        turn = f"translate(14 {(self._floor + HEAD_ROOM) / 2:.1f}) rotate(-90)"
        element(self.svg, "text", self.y_label, transform=turn, text_anchor="middle")

    def place(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a value."""
        across = (x - self.low) / ((self.high - self.low) or 1.0)
        up = (y - self.bottom) / ((self.top - self.bottom) or 1.0)
        return (
            self._left + (self._right - self._left) * across,
            self._floor - (self._floor - HEAD_ROOM) * up,
        )

    def line(self, points: Points, style: str) -> None:
        """A line through values; a single value is a dot."""
        pixels = [self.place(x, y) for x, y in points]
        if len(pixels) == 1:
            self.dot(points[0], style, radius=3.0)
        elif pixels:
            element(self.svg, "path", class_=f"line {style}", d=path_data(pixels))

    def dot(self, point: tuple[float, float], style: str, *, radius: float = 5.0, title: str = "") -> None:
        """A mark on one value; its title appears under the pointer."""
        x, y = self.place(*point)
        circle = element(self.svg, "circle", class_=style, cx=x, cy=y, r=radius)
        if title:
            element(circle, "title", title)

    def markup(self) -> Markup:
        return to_markup(self.svg)


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    points: Points  # (x, y)
    style: str = ""  # a class of the style sheet; "": by position


def line_chart(
    name: str, series: Sequence[Series], x_label: str, y_label: str, *, width: int = 460, height: int = 260
) -> Axes | None:
    """Axes from 0 (or below) with a line per series; None if there is no value."""
    points = [point for one in series for point in one.points]
    if not points:
        return None
    low, high = min(0.0, *(x for x, _ in points)), max(x for x, _ in points)
    bottom, top = round_range(min(0.0, *(y for _, y in points)), max(y for _, y in points))
    axes = Axes(name, x_label, y_label, low, high if high > low else low + 1, bottom, top, width, height)
    for style, one in zip(series_styles(series), series, strict=True):
        axes.line(one.points, style)
    return axes


def series_styles(series: Sequence[Series]) -> list[str]:
    """The class of each line: its own, or one by position."""
    return [one.style or f"series-{i % SERIES_STYLES + 1}" for i, one in enumerate(series)]
