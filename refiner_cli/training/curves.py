"""The curves of a run as one HTML file: inline SVG, no script, nothing to fetch."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from refiner_cli.files import atomic_file
from refiner_cli.metric_names import HEADLINE_METRICS
from refiner_cli.training.run_dir import Run

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 220, 56, 28, 12
COLOURS = ("#2563eb", "#dc2626", "#059669", "#7c3aed")
MAX_POINTS = 600  # points of a line; more are averaged
STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2rem;color:#111;background:#fff}h1{font-size:1.2rem}"
    "figure{display:inline-block;margin:0 1.5rem 1.5rem 0}figcaption{margin-bottom:.3rem}"
    "text{font-size:11px;fill:#555}.grid{stroke:#ddd}.line{fill:none;stroke-width:1.6}"
)
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    name: str
    points: Points  # (step, value)


def write_curves(run: Run) -> None:
    """Draw ``metrics.jsonl`` into ``curves.html``."""
    rows = list(run.metrics())
    steps = [row for row in rows if row["kind"] == "step"]
    checks = [row for row in rows if row["kind"] == "val"]
    figures = [
        figure("Training loss", [Curve("loss", series(steps, "loss"))]),
        figure("Validation, percent", [Curve(name, series(checks, name)) for name in HEADLINE_METRICS]),
        figure("Norm of the gradient, before clipping", [Curve("norm", series(steps, "norm"))]),
        figure("Learning rate", [Curve("lr", series(steps, "lr"))]),
        figure("Seconds a step", [Curve(name, series(steps, name)) for name in ("seconds", "waited")]),
    ]
    config = run.config
    title = html.escape(f"{config.method} on {run.dataset.name}, {config.backbone}, seed {config.seed}")
    page = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style>\n<h1>{title}</h1>\n" + "\n".join(figures) + "\n</html>\n"
    )
    with atomic_file(run.folder / "curves.html") as part:
        part.write_text(page, "utf-8")


def series(rows: Sequence[dict[str, Any]], key: str) -> Points:
    """(step, value) of every row that has a value; long ones averaged over equal stretches."""
    points = [(float(row["step"]), float(row[key])) for row in rows if row.get(key) is not None]
    size = -(-len(points) // MAX_POINTS) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def figure(caption: str, lines: Sequence[Curve]) -> str:
    """One chart with its caption; the legend carries each line's last value."""
    every = [point for line in lines for point in line.points]
    if not every:
        return f"<figure><figcaption>{html.escape(caption)}</figcaption>no values yet</figure>"
    right = max(step for step, _ in every) or 1.0
    low, high = min(0.0, *(value for _, value in every)), max(value for _, value in every)
    high = high if high > low else low + 1.0

    def at(step: float, value: float) -> tuple[float, float]:
        x = LEFT + step / right * (WIDTH - LEFT - 8)
        return x, HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    parts = []
    for tick in range(5):
        value = low + (high - low) * tick / 4
        _, y = at(0, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    parts.append(f'<text x="{WIDTH - 8}" y="{HEIGHT - 8}" text-anchor="end">step {right:.0f}</text>')
    for number, (line, colour) in enumerate(zip(lines, COLOURS, strict=False)):
        if not line.points:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line.points))
        parts.append(f'<polyline class="line" stroke="{colour}" points="{path}"/>')
        if len(line.points) == 1:
            x, y = at(*line.points[0])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        label = html.escape(f"{line.name} {line.points[-1][1]:.4g}")
        x = LEFT + 8 + number * 110
        parts.append(f'<text x="{x}" y="{HEIGHT - 8}" style="fill:{colour}">{label}</text>')
    return (
        f'<figure><figcaption>{html.escape(caption)}</figcaption><svg width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{html.escape(caption)}">{"".join(parts)}</svg></figure>'
    )
