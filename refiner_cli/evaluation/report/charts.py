"""The charts of the report: seen against unseen, calibration, a sweep on validation, confusions.

Every function returns one ``svg`` element; all accuracies are in percent.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from markupsafe import Markup

from refiner_cli.evaluation.metrics.breakdown import Confusion, Reliability
from refiner_cli.evaluation.metrics.seen_unseen import SeenUnseenCurve
from refiner_cli.render import (
    CHARACTER_WIDTH,
    Axes,
    Points,
    element,
    new_svg,
    path_data,
    round_range,
    to_markup,
)

CELL = 22  # side of a cell of the confusion map
LABELLED = 10  # percent from which a cell of the confusion map shows its number
COUNT_WIDTH = 38  # of the column of image counts
SLANT = math.radians(60)  # of the labels above the columns

Marker = Literal["dot", "ring", "square"]


@dataclass(frozen=True)
class OperatingPoint:
    """The accuracies at one bias."""

    marker: Marker
    unseen: float
    seen: float
    text: str  # appears under the pointer


@dataclass(frozen=True)
class WorldCurve:
    """One world's curve with its operating points; ``style`` is a class of the style sheet."""

    style: str
    curve: SeenUnseenCurve
    points: Sequence[OperatingPoint]


def seen_unseen_chart(worlds: Sequence[WorldCurve]) -> Markup:
    """Seen against unseen accuracy over all biases, with the operating points. Curves must be defined."""
    high = round_range(0, max([10.0, *(float(world.curve.unseen.max()) for world in worlds)]))[1]
    top = round_range(0, max([10.0, *(float(world.curve.seen.max()) for world in worlds)]))[1]
    axes = Axes(
        "Seen-unseen curve", "accuracy on unseen pairs, %", "accuracy on seen pairs, %", 0, high, 0, top
    )
    for world in worlds:
        corners = curve_corners(world.curve)
        area = [(corners[0][0], 0.0), *corners, (corners[-1][0], 0.0)]
        pixels = path_data([axes.place(*corner) for corner in area])
        element(axes.svg, "path", class_=f"area {world.style}", d=f"{pixels}Z")
        axes.line(corners, world.style)
    for world in worlds:
        for point in world.points:
            draw_point(axes, point, world.style)
    return axes.markup()


def curve_corners(curve: SeenUnseenCurve) -> Points:
    """The (unseen, seen) corners: steps for ``exact``, straight lines for ``legacy``; none twice in a row."""
    corners: list[tuple[float, float]] = []
    before = float(curve.unseen[0])
    for unseen, seen in zip(curve.unseen.tolist(), curve.seen.tolist(), strict=True):
        # A step goes down before it goes right, so the area under it is the reported one.
        for x in (before, unseen) if curve.protocol == "exact" else (unseen,):
            if not corners or corners[-1] != (x, seen):
                corners.append((x, seen))
        before = unseen
    return corners


def draw_point(axes: Axes, point: OperatingPoint, style: str) -> None:
    if point.marker == "square":
        x, y = axes.place(point.unseen, point.seen)
        square = element(axes.svg, "rect", class_=f"mark {style}", x=x - 4, y=y - 4, width=8, height=8)
        element(square, "title", point.text)
        return
    classes = f"ring {style}" if point.marker == "ring" else style
    axes.dot((point.unseen, point.seen), classes, title=point.text)


def calibration_chart(worlds: Sequence[tuple[str, Reliability]], title: str = "Calibration") -> Markup:
    """Accuracy against confidence; a dot's area grows with its share of the images."""
    axes = Axes(title, "confidence, %", "accuracy, %", 0, 100, 0, 100)
    diagonal = path_data([axes.place(0, 0), axes.place(100, 100)])
    element(axes.svg, "path", class_="diagonal", d=diagonal)
    for style, reliability in worlds:
        filled = np.flatnonzero(reliability.images)
        points = [(float(reliability.confidence[i]), float(reliability.accuracy[i])) for i in filled]
        axes.line(points, style)
        for i, (confidence, accuracy) in zip(filled, points, strict=True):
            images = int(reliability.images[i])
            radius = 2 + 9 * math.sqrt(images / reliability.images.sum())
            hover = f"{images} images: confidence {confidence:.0f} %, accuracy {accuracy:.0f} %"
            axes.dot((confidence, accuracy), style, radius=radius, title=hover)
    return axes.markup()


def validation_chart(candidates: Points, chosen: float, label: str, style: str) -> Markup:
    """The AUC on validation of every candidate value, and the chosen one."""
    values = [value for value, _ in candidates]
    low, high = round_range(min(values), max(values))
    top = round_range(0, max(auc for _, auc in candidates))[1]
    axes = Axes("AUC on validation", label, "AUC on validation, %", low, high, 0, top, height=260)
    axes.line(candidates, style)
    axes.dot((chosen, dict(candidates)[chosen]), style, title=f"chosen: {chosen:.4g}")
    return axes.markup()


def confusion_map(confusion: Confusion) -> Markup:
    """True (rows) against predicted (columns) in percent of a row; the diagonal is right."""
    label = CHARACTER_WIDTH * max(map(len, confusion.names), default=0) + 10
    left, head = label + COUNT_WIDTH, label * math.sin(SLANT) + 14
    size = CELL * len(confusion.names)
    svg = new_svg(left + size + label * math.cos(SLANT) + 4, head + size + 4, "Confusion")
    for i, name in enumerate(confusion.names):
        middle = i * CELL + CELL / 2 + 4
        element(svg, "text", name, class_="tick", x=label, y=head + middle, text_anchor="end")
        count = str(confusion.images[i])
        element(svg, "text", count, class_="tick", x=left - 8, y=head + middle, text_anchor="end")
        turn = f"translate({left + middle:.1f} {head - 5:.1f}) rotate(-{math.degrees(SLANT):.0f})"
        element(svg, "text", name, class_="tick", transform=turn)
        for j in range(len(confusion.names)):
            draw_cell(svg, confusion, (i, j), (left + j * CELL, head + i * CELL))
    return to_markup(svg)


def draw_cell(svg: ET.Element, confusion: Confusion, place: tuple[int, int], at: tuple[float, float]) -> None:
    i, j = place
    x, y = at
    value = float(confusion.percent[i, j])
    element(svg, "rect", class_="cell", x=x, y=y, width=CELL - 1, height=CELL - 1)
    style, opacity = "right" if i == j else "wrong", f"{math.sqrt(value / 100):.2f}"
    square = element(
        svg, "rect", class_=style, x=x, y=y, width=CELL - 1, height=CELL - 1, fill_opacity=opacity
    )
    verdict = "recognised" if i == j else f"taken for {confusion.names[j]}"
    element(square, "title", f"{confusion.names[i]} {verdict}: {value:.1f} %")
    if value >= LABELLED:
        middle = {"x": x + CELL / 2 - 0.5, "y": y + CELL / 2 + 3.5}
        element(svg, "text", f"{value:.0f}", class_="count", text_anchor="middle", **middle)
