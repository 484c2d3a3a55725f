"""Options and tables that ``eval`` and ``compare`` share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from refiner_cli.cli.console import new_table
from refiner_cli.errors import UsageError
from refiner_cli.metric_names import METRIC_NAMES, UNDEFINED, format_metric

if TYPE_CHECKING:
    from refiner_cli.core.models.base import Model
    from refiner_cli.data.benchmark import World
    from refiner_cli.evaluation.metrics.bias_sweep import Metrics
    from refiner_cli.evaluation.metrics.bootstrap import Interval
    from refiner_cli.evaluation.metrics.confidence import MeasuredConfidence
    from refiner_cli.evaluation.result import Result

DatasetOption = Annotated[
    str | None,
    typer.Option("--dataset", help="A catalogue name or a folder.  [the dataset the model was trained on]"),
]
SplitOption = Annotated[Literal["val", "test"], typer.Option("--split", help="The split to evaluate on.")]
WorldOption = Annotated[
    Literal["closed", "open", "both"],
    typer.Option("--world", help="Candidates: the dataset's pairs (closed), all state-object pairs (open)."),
]
ProtocolOption = Annotated[
    Literal["exact", "legacy"],
    typer.Option(
        "--protocol", help="Sweep every breakpoint of the bias, or about 20 as published code does."
    ),
]
FeasibilityOption = Annotated[
    Literal["none", "mask", "soft"],
    typer.Option(
        "--feasibility", help="How implausible pairs are treated in the open world; fitted on validation."
    ),
]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Images per batch.")]
BootstrapSamplesOption = Annotated[
    int, typer.Option("--bootstrap-samples", min=2, help="Bootstrap samples for the 95 % intervals.")
]


def check_feasibility(
    mode: Literal["none", "mask", "soft"], world: Literal["closed", "open", "both"]
) -> None:
    """Raise UsageError for feasibility where no open world is evaluated."""
    if mode != "none" and world == "closed":
        raise UsageError("--feasibility applies to the open world only.", hint="Use --world open or both.")


def worlds_of(choice: Literal["closed", "open", "both"]) -> list[World]:
    return ["closed", "open"] if choice == "both" else [choice]


def name_backbone(model: Model) -> str:
    """The backbone as tables and reports name it."""
    from refiner_cli.core.model_io.zero_shot import backbone_text

    return backbone_text(model.backbone.spec.name, model.backbone.spec.pretrained)


def parse_top_k(text: str) -> tuple[int, ...]:
    """The ranks of ``--topk``: distinct integers from 1, in rising order."""
    items = [item.strip() for item in text.split(",")]
    ranks = {int(item) for item in items if item.isdecimal() and int(item) > 0}
    if len(ranks) != len(items):
        raise UsageError(
            f"--topk {text!r} is not a list of distinct integers from 1.", hint="Write it like 1,3,5."
        )
    return tuple(sorted(ranks))


def format_interval(interval: Interval | None) -> str:
    """``low..high``; nothing where it is undefined."""
    return f"{interval.low:.1f}..{interval.high:.1f}" if interval else ""


def spread_cells(spread: Mapping[str, tuple[float, float] | None]) -> list[list[str]]:
    """Rows of mean and standard deviation by metric."""
    return [
        [row, *(format_metric(pair[place]) if pair else UNDEFINED for pair in map(spread.get, METRIC_NAMES))]
        for place, row in enumerate(("mean", "sd"))
    ]


def undefined_notes(worlds: Mapping[str, Metrics]) -> list[str]:
    """A sentence for each world in which a metric is undefined."""
    return [f"{world} world: {text}" for world, m in worlds.items() if (text := m.undefined_text())]


def metrics_table(
    title: str, rows: Mapping[str, tuple[dict[str, Any], Mapping[str, Interval | None]]]
) -> Table:
    """A row per name: its metrics, and below each the 95 % interval."""
    table = new_table(title, "", *METRIC_NAMES)
    for name, (metrics, intervals) in rows.items():
        table.add_row(name, *(format_metric(metrics[column]) for column in METRIC_NAMES))
        spans = [intervals[column] for column in METRIC_NAMES]
        table.add_row("", *(format_interval(span) for span in spans), style="dim")
    return table


SHOWN_PROMISES = (0.8, 0.9, 0.95)  # in the terminal; JSON and report have all


def calibration_error_table(title: str, measured: MeasuredConfidence) -> Table:
    """The expected calibration error of the best pair, object and state, before and after temperatures."""
    table = new_table(title, "", "before", "after", "temperature")
    for level, (before, after) in measured.errors.items():
        temperature = getattr(measured.confidence.temperatures, level)
        table.add_row(level, f"{before:.1f}", f"{after:.1f}", f"{temperature:.2f}")
    return table


def threshold_table(title: str, result: Result, measured: MeasuredConfidence) -> Table:
    """For some promised precisions: from which probability on, coverage and precision."""
    found_on, split = result.calibration_images, result.split
    columns = (
        "probability", f"{found_on} coverage", "precision", f"{split} coverage", "precision", "95 % interval",
    )  # fmt: skip
    table = new_table(title, "promised", *columns)
    for kept in measured.kept:
        if kept.precision in SHOWN_PROMISES:
            own = kept.threshold
            table.add_row(
                f"{kept.precision:.0%} {kept.level}",
                UNDEFINED if own.probability is None else f"{own.probability:.2f}",
                f"{own.coverage:.1%}",
                format_share(own.precision),
                f"{kept.coverage:.1%}",
                format_share(kept.measured),
                "..".join(f"{100 * side:.1f}" for side in kept.interval or ()),
            )
    return table


def format_share(share: float | None) -> str:
    return UNDEFINED if share is None else f"{share:.1%}"


def top_k_table(result: Result) -> Table:
    """How often the true pair is among the best k, without a bias."""
    first = next(iter(result.worlds.values()))
    table = new_table("True pair among the k best, %", "", *(f"top-{k}" for k in first.top_k))
    for name, world in result.worlds.items():
        for group in ("seen", "unseen"):
            table.add_row(
                f"{name}, {group}", *(format_metric(shares[group]) for shares in world.top_k.values())
            )
    return table
