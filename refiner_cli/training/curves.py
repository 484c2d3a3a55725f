"""The learning curves of a run as one HTML file: inline SVG, no script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from refiner_cli.metric_names import HEADLINE_METRICS
from refiner_cli.render import Points, Series, line_chart, series_styles, write_page
from refiner_cli.training.run_dir import Run

MAX_POINTS = 600  # points of a line; more are averaged


@dataclass(frozen=True)
class LearningCurve:
    """One chart of the page: ``svg`` is None where there is nothing to draw, and ``missing`` says why."""

    caption: str
    svg: Markup | None
    key: Sequence[tuple[str, str, str]]  # style, name, last value
    missing: str


def write_curves(run: Run) -> None:
    """Draw ``metrics.jsonl`` into ``curves.html``."""
    rows = list(run.metrics())
    steps = [row for row in rows if row["kind"] == "step"]
    validations = [row for row in rows if row["kind"] == "val"]
    charts = [
        draw_chart("Training loss", steps, ["loss"]),
        draw_chart("Validation", validations, HEADLINE_METRICS, "percent"),
        draw_chart("Gradient norm before clipping", steps, ["norm"]),
        draw_chart("Learning rate", steps, ["lr"]),
        draw_chart("Time per step: all of it, and waiting for data", steps, ["seconds", "waited"], "seconds"),
    ]
    config = run.config
    write_page(
        run.folder / "curves.html",
        "training/curves.html",
        title=f"{config.method} on {run.dataset.name}",
        subtitle=f"{config.backbone}, seed {config.seed}",
        charts=charts,
    )


def draw_chart(
    caption: str, rows: Sequence[dict[str, Any]], keys: Sequence[str], y_label: str = ""
) -> LearningCurve:
    """A line per key that has values; the key below the chart carries each line's last value."""
    lines = [Series(key, averaged(rows, key)) for key in keys]
    drawn = [line for line in lines if line.points]
    axes = line_chart(caption, drawn, "step", y_label)
    key = [
        (style, line.name, f"{line.points[-1][1]:.4g}")
        for style, line in zip(series_styles(drawn), drawn, strict=True)
    ]
    missing = f"{', '.join(keys)}: undefined so far." if rows else "No values yet."
    return LearningCurve(caption, axes.markup() if axes else None, key, missing)


def averaged(rows: Sequence[dict[str, Any]], key: str) -> Points:
    """(step, value) of every row that has a value; long series averaged over equal stretches."""
    points = [(float(row["step"]), float(row[key])) for row in rows if row.get(key) is not None]
    size = -(-len(points) // MAX_POINTS) or 1
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [(stretch[-1][0], sum(value for _, value in stretch) / len(stretch)) for stretch in stretches]
