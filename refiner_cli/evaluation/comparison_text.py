"""A comparison as a table for a paper, a page or a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Literal

from refiner_cli.evaluation.compare import Comparison
from refiner_cli.metric_names import METRIC_NAMES, UNDEFINED, format_metric

TextFormat = Literal["markdown", "latex", "csv"]
COLUMN_NAMES = ("run", "method", "backbone", "world", *METRIC_NAMES)
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def comparison_text(comparison: Comparison, form: TextFormat, origin: str) -> str:
    """All runs in all worlds, a line each; then mean and deviation of runs that differ only in seed.

    Markdown and LaTeX have one decimal and say the split and the origin; LaTeX needs the package booktabs.
    CSV is nothing but the table: every digit, and the deviation in columns of its own.

    Args:
        origin: when and with which command the comparison was made.
    """
    first = comparison.sides[0].result
    if form == "csv":
        return csv_text(comparison)
    rows = [list(COLUMN_NAMES), *text_rows(comparison, "±" if form == "markdown" else r"$\pm$", form)]
    title = f"{first.dataset}, {first.split}; {origin}"
    if form == "markdown":
        lines = [f"| {' | '.join(row)} |" for row in rows]
        rule = f"|{'---|' * 4}{'---:|' * len(METRIC_NAMES)}"
        return "\n".join([markdown_cell(title), "", lines[0], rule, *lines[1:]]) + "\n"
    rows[0] = [latex_cell(name) for name in COLUMN_NAMES]
    body = [" & ".join(row) + r" \\" for row in rows]
    begin = rf"\begin{{tabular}}{{llll{'r' * len(METRIC_NAMES)}}}"
    return "\n".join(
        [f"% {latex_cell(title)}", begin, r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule",
         r"\end{tabular}"]
    ) + "\n"  # fmt: skip


def text_rows(comparison: Comparison, plus_minus: str, form: TextFormat) -> Iterator[list[str]]:
    """The cells of every line, escaped."""
    escape = markdown_cell if form == "markdown" else latex_cell
    for side in comparison.sides:
        for world, result in side.result.worlds.items():
            values = [format_metric(getattr(result.metrics, name)) for name in METRIC_NAMES]
            yield [*map(escape, (side.name, side.method, side.backbone, world)), *values]
    for group in comparison.seeds:
        for world, spread in group.worlds.items():
            cells = [
                UNDEFINED if pair is None else f"{pair[0]:.1f} {plus_minus} {pair[1]:.1f}"
                for pair in (spread[name] for name in METRIC_NAMES)
            ]
            yield [escape(f"mean of {len(group.runs)} seeds: {', '.join(group.runs)}"), "", "", world, *cells]


def csv_text(comparison: Comparison) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*COLUMN_NAMES, *(f"{name}_sd" for name in METRIC_NAMES)])
    nothing = [""] * len(METRIC_NAMES)
    for side in comparison.sides:
        for world, result in side.result.worlds.items():
            values = [getattr(result.metrics, name) for name in METRIC_NAMES]
            writer.writerow([side.name, side.method, side.backbone, world, *values, *nothing])
    for group in comparison.seeds:
        for world, spread in group.worlds.items():
            pairs = [spread[name] or ("", "") for name in METRIC_NAMES]
            means, deviations = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            writer.writerow([f"mean of {' '.join(group.runs)}", "", "", world, *means, *deviations])
    return stream.getvalue()


def markdown_cell(text: str) -> str:
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", text).replace("\n", " ")


def latex_cell(text: str) -> str:
    return "".join(_LATEX.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text).replace("\n", " ")
