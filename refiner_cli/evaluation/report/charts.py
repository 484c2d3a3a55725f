"""Charts as inline SVG, drawn by hand: they need no script, no font and no network.

Colours come from the page's style sheet by class, so that light and dark both work. Every function
returns one ``<svg>`` element; all accuracies are in percent.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refiner_cli.evaluation.metrics.breakdown import Confusion, Reliability
from refiner_cli.evaluation.metrics.score_summary import FloatArray
from refiner_cli.evaluation.metrics.seen_unseen import SeenUnseenCurve

CELL = 22  # side of a cell of the confusion map
CHARACTER = 6.2  # width of a letter of a label, about
LABELLED = 10  # percent from which a cell of the confusion map shows its number


@dataclass(frozen=True)
class Mark:
    """An operating point: a bias with what it gives, as (unseen, seen) accuracy."""

    shape: str  # dot, ring or square
    unseen: float
    seen: float
    text: str  # shown under the pointer


@dataclass(frozen=True)
class ChartLine:
    """One world's curve with its operating points; ``style`` is a class of the style sheet."""

    style: str
    curve: SeenUnseenCurve
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Frame:
    """Axes from (low, 0) to (high, top) in a box of fixed size."""

    x_label: str
    y_label: str
    high: float = 100.0
    top: float = 100.0
    low: float = 0.0
    width: int = 460
    height: int = 330

    def x(self, value: float) -> float:
        return 50 + (self.width - 64) * (value - self.low) / ((self.high - self.low) or 1)

    def y(self, value: float) -> float:
        return (self.height - 44) - (self.height - 56) * value / (self.top or 1)

    def draw(self, content: str, name: str) -> str:
        """The axes around ``content``; ``name`` says aloud what the picture shows."""
        parts = [svg_start(self.width, self.height, name)]
        for value in ticks(0, self.top):
            y = self.y(value)
            parts.append(f'<path class="rule" d="M{self.x(self.low):.1f} {y:.1f}H{self.x(self.high):.1f}"/>')
            parts.append(f'<text class="tick" x="44" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        for value in ticks(self.low, self.high):
            x, y = self.x(value), self.height - 26
            parts.append(f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{value:g}</text>')
        middle = (self.x(self.low) + self.x(self.high)) / 2
        bottom, side = f'x="{middle:.0f}" y="{self.height - 6}"', f"12 {self.y(self.top / 2):.0f}"
        parts.append(
            f'<text class="axis" {bottom} text-anchor="middle">{self.x_label}</text>'
            f'<text class="axis" transform="translate({side}) rotate(-90)" text-anchor="middle">'
            f"{self.y_label}</text>"
        )
        return "".join([*parts, content, "</svg>"])


def svg_start(width: float, height: float, name: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{html.escape(name)}">'
    )


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from ``low`` to ``high``."""
    span = (high - low) or 1
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
    return [float(f"{step * i:.6g}") for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def seen_unseen(lines: Sequence[ChartLine]) -> str:
    """Seen against unseen accuracy over all biases, with the operating points."""
    lines = [line for line in lines if line.curve.is_defined]
    high = max([10.0, *(float(line.curve.unseen.max()) for line in lines)])
    top = max([10.0, *(float(line.curve.seen.max()) for line in lines)])
    frame = Frame("accuracy on unseen pairs, %", "accuracy on seen pairs, %", 1.05 * high, 1.05 * top)
    content = []
    for line in lines:
        path = outline(frame, line.curve)
        start, end = frame.x(float(line.curve.unseen[0])), frame.x(float(line.curve.unseen[-1]))
        floor = frame.y(0)
        content.append(
            f'<path class="area {line.style}" d="M{start:.1f} {floor:.1f}L{path}L{end:.1f} {floor:.1f}Z"/>'
            f'<path class="line {line.style}" d="M{path}"/>'
        )
    for line in lines:
        content += [mark(frame, point, line.style) for point in line.marks]
    return frame.draw("".join(content), "Seen-unseen curve")


def outline(frame: Frame, curve: SeenUnseenCurve) -> str:
    """The corners of a curve: steps for ``exact``, straight lines for ``legacy``; repeated ones left out."""
    corners: list[str] = []
    before = float(curve.unseen[0])
    for unseen, seen in zip(curve.unseen.tolist(), curve.seen.tolist(), strict=True):
        # A step goes down before it goes right, so the area under it is the reported one.
        for x in (before, unseen) if curve.protocol == "exact" else (unseen,):
            corner = f"{frame.x(x):.1f} {frame.y(seen):.1f}"
            if not corners or corners[-1] != corner:
                corners.append(corner)
        before = unseen
    return "L".join(corners)


def mark(frame: Frame, point: Mark, style: str) -> str:
    x, y = frame.x(point.unseen), frame.y(point.seen)
    title = f"<title>{html.escape(point.text)}</title>"
    if point.shape == "square":
        return (
            f'<rect class="mark {style}" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8">{title}</rect>'
        )
    return f'<circle class="{point.shape} {style}" cx="{x:.1f}" cy="{y:.1f}" r="5">{title}</circle>'


def calibration(lines: Sequence[tuple[str, Reliability]]) -> str:
    """Accuracy against confidence; a dot's area grows with its share of the images."""
    frame = Frame("confidence, %", "accuracy, %")
    content = [f'<path class="ideal" d="M{frame.x(0)} {frame.y(0)}L{frame.x(100)} {frame.y(100)}"/>']
    for style, found in lines:
        filled = np.flatnonzero(found.images)
        points = [(frame.x(found.confidence[i]), frame.y(found.accuracy[i])) for i in filled]
        content.append(f'<path class="line {style}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>')
        for i, (x, y) in zip(filled, points, strict=True):
            radius = 2 + 9 * math.sqrt(found.images[i] / found.images.sum())
            sure, right = found.confidence[i], found.accuracy[i]
            title = f"<title>{found.images[i]} images: {sure:.0f} % sure, {right:.0f} % right</title>"
            place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"'
            content.append(f'<circle class="dot {style}" {place}>{title}</circle>')
    return frame.draw("".join(content), "Calibration")


def tried(values: Sequence[tuple[float, float]], chosen: float, label: str) -> str:
    """What validation said to every value that was tried, and which one was taken."""
    low, high = values[0][0], values[-1][0]
    frame = Frame(label, "AUC on validation", high, 1.1 * max(auc for _, auc in values), low, 380, 230)
    points = "L".join(f"{frame.x(value):.1f} {frame.y(auc):.1f}" for value, auc in values)
    best = dict(values)[chosen]
    dot = f'<circle class="dot open" cx="{frame.x(chosen):.1f}" cy="{frame.y(best):.1f}" r="5"/>'
    return frame.draw(f'<path class="line open" d="M{points}"/>{dot}', "Validation of the feasibility prior")


def confusion_map(found: Confusion) -> str:
    """True (rows) against predicted (columns) in percent of a row; the diagonal is right."""
    left = CHARACTER * max(map(len, found.names), default=0) + 44
    size, head = CELL * len(found.names), 0.9 * (left - 44) + 14  # column labels are slanted
    parts = [svg_start(left + size + 0.5 * head + 4, head + size + 4, "Confusion")]
    for i, name in enumerate(found.names):
        label, at = html.escape(name), i * CELL + CELL / 2 + 4
        row, column = f'y="{head + at:.0f}" text-anchor="end"', f"{left + at:.0f} {head - 5:.0f}"
        parts.append(
            f'<text class="tick" x="{left - 34:.0f}" {row}>{label}</text>'
            f'<text class="tick" x="{left - 6:.0f}" {row}>{found.images[i]}</text>'
            f'<text class="tick" transform="translate({column}) rotate(-60)">{label}</text>'
        )
        parts += [cell(found.percent, found.names, (i, j), (left, head)) for j in range(len(found.names))]
    return "".join([*parts, "</svg>"])


def cell(
    percent: FloatArray, names: Sequence[str], place: tuple[int, int], corner: tuple[float, float]
) -> str:
    i, j = place
    value = float(percent[i, j])
    x, y = corner[0] + j * CELL, corner[1] + i * CELL
    style = "right" if i == j else "wrong"
    title = f"{html.escape(names[i])} taken for {html.escape(names[j])}: {value:.1f} %"
    square = f'x="{x:.1f}" y="{y:.1f}" width="{CELL - 1}" height="{CELL - 1}"'
    shade = f'fill-opacity="{math.sqrt(value / 100):.2f}"'
    box = f'<rect class="cell" {square}/><rect class="{style}" {square} {shade}><title>{title}</title></rect>'
    if value < LABELLED:
        return box
    middle = f'x="{x + CELL / 2 - 0.5:.1f}" y="{y + CELL / 2 + 3.5:.1f}" text-anchor="middle"'
    return f'{box}<text class="count" {middle}>{value:.0f}</text>'
