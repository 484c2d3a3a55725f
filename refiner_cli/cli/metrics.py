"""Options and tables that ``eval`` and ``compare`` share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from refiner_cli.cli.console import new_table
from refiner_cli.errors import UsageError
from refiner_cli.metric_names import METRIC_NAMES, format_metric

if TYPE_CHECKING:
    from refiner_cli.data.benchmark import World
    from refiner_cli.evaluation.metrics.bias_sweep import Metrics
    from refiner_cli.evaluation.metrics.bootstrap import Interval
    from refiner_cli.evaluation.result import Result

Dataset = Annotated[
    str | None, typer.Option(help="A catalogue name or a folder.  [what the model was trained on]")
]
Split = Annotated[Literal["val", "test"], typer.Option(help="Which split.")]
Worlds = Annotated[Literal["closed", "open", "both"], typer.Option(help="Which pairs compete.")]
Protocol = Annotated[
    Literal["exact", "legacy"], typer.Option(help="Every breakpoint, or the published 20-point sweep.")
]
Feasibility = Annotated[
    Literal["none", "mask", "soft"],
    typer.Option(help="What the open world does with pairs that hardly exist; fitted on validation."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images encoded at once.")]
BootstrapSamples = Annotated[int, typer.Option(min=2, help="Bootstrap samples for the 95 % intervals.")]


def worlds_of(choice: Literal["closed", "open", "both"]) -> list[World]:
    return ["closed", "open"] if choice == "both" else [choice]


def parse_top_k(text: str) -> tuple[int, ...]:
    """The k of ``--topk``: different whole numbers from 1."""
    parts = [part.strip() for part in text.split(",")]
    found = [int(part) for part in parts if part.isdecimal() and int(part) > 0]
    if len(found) != len(parts) or len(set(found)) != len(found):
        raise UsageError(f"--topk {text!r} is no list of different ranks.", hint="Write it like 1,3,5.")
    return tuple(sorted(found))


def format_interval(interval: Interval | None) -> str:
    """``low..high``; nothing where it is undefined."""
    return f"{interval.low:.1f}..{interval.high:.1f}" if interval else ""


def undefined_notes(worlds: Mapping[str, Metrics]) -> list[str]:
    """A sentence for each world in which a metric is undefined."""
    return [f"{world} world: {text}" for world, m in worlds.items() if (text := m.undefined_text())]


def metrics_table(
    title: str, rows: Mapping[str, tuple[dict[str, Any], Mapping[str, Interval | None]]]
) -> Table:
    """A row a name: its metrics, and below each the 95 % interval."""
    table = new_table(title, "", *METRIC_NAMES)
    for name, (metrics, intervals) in rows.items():
        table.add_row(name, *(format_metric(metrics[column]) for column in METRIC_NAMES))
        spans = [intervals[column] for column in METRIC_NAMES]
        table.add_row("", *(format_interval(span) for span in spans), style="dim")
    return table


def top_table(result: Result) -> Table:
    """How often the truth is among the best k, without any bias."""
    first = next(iter(result.worlds.values()))
    table = new_table("Truth among the k best, %", "", *(f"top-{k}" for k in first.top_k))
    for name, world in result.worlds.items():
        for group in ("seen", "unseen"):
            table.add_row(
                f"{name}, {group}", *(format_metric(shares[group]) for shares in world.top_k.values())
            )
    return table
