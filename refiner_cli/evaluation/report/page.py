"""One self-contained page about an evaluation: no script, no network, readable in ten years.

It only shows what a :class:`~refiner_cli.evaluation.result.Result` holds; nothing is computed from
test labels here that could flow back into a choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from markupsafe import Markup

from refiner_cli.data.decode import read
from refiner_cli.data.image_file import UnreadableError
from refiner_cli.evaluation.metrics.bias_sweep import seen_unseen_curve
from refiner_cli.evaluation.metrics.bootstrap import Interval
from refiner_cli.evaluation.metrics.breakdown import (
    BreakdownRow,
    PrimitiveKind,
    bin_confidences,
    confusion,
    difficulty,
    reliability,
)
from refiner_cli.evaluation.metrics.confidence import MeasuredConfidence
from refiner_cli.evaluation.report import charts
from refiner_cli.evaluation.report.sentences import calibration_text, choice_sentences, undefined_sentences
from refiner_cli.evaluation.result import Result, WorldResult
from refiner_cli.metric_names import METRIC_NAMES, UNDEFINED, format_metric
from refiner_cli.render import data_url, thumbnail, write_page

PHOTO_SIDE = 160  # pixels of a thumbnail, shown at half that size: sharp on a high-density screen
PHOTOS_PER_PAIR = 3
HARDEST_PAIRS = 12
PRIMITIVE_KINDS: tuple[PrimitiveKind, ...] = ("state", "object")
HEADINGS = {"state_acc": "state", "object_acc": "object"}
NO_FACTS: Mapping[str, str] = MappingProxyType({})
STYLES = {"closed": "series-1", "open": "series-2"}


@dataclass(frozen=True)
class HardPair:
    """An unseen pair that is often mistaken, with some of its images."""

    row: BreakdownRow
    photos: Sequence[str]  # data URLs
    unreadable: int  # images that could not be shown


@dataclass(frozen=True)
class WorldSection:
    """The part of the page about one world."""

    name: str
    style: str
    confusions: Sequence[tuple[str, Markup]]
    hardest: Sequence[HardPair]
    tables: Sequence[tuple[str, Sequence[BreakdownRow]]]  # the most difficult rows first


def write_report(
    file: Path, result: Result, images: Path | None = None, facts: Mapping[str, str] = NO_FACTS
) -> None:
    """Write the page atomically.

    Args:
        images: the folder that ``result.images`` are relative to; None: no thumbnails.
        facts: what was evaluated, as names and values for the head of the page.
    """
    sizes = next(iter(result.worlds.values())).metrics
    points = {name: operating_points(world, result) for name, world in result.worlds.items()}
    write_page(
        file,
        "evaluation/report/page.html",
        title=f"Evaluation on {result.dataset}",
        subtitle=f"{result.split} split, {result.protocol} protocol, {sizes.n_seen:,} images of seen and "
        f"{sizes.n_unseen:,} of unseen pairs",
        facts=facts,
        bootstrap_samples=result.bootstrap_samples,
        headings=[HEADINGS.get(name, name) for name in METRIC_NAMES],
        metrics=[(name, metric_cells(world)) for name, world in result.worlds.items()],
        undefined=list(undefined_sentences(result)),
        ranks=[f"top-{k}" for k in next(iter(result.worlds.values())).top_k],
        top_k=[
            (f"{name}, {group}", top_k_cells(world, group))
            for name, world in result.worlds.items()
            for group in ("all", "seen", "unseen")
        ],
        curve=curve_chart(points, result),
        styles={name: world_style(name) for name in result.worlds},
        has_calibration=result.calibration is not None,
        points=[(f"{name}: {point.text}", point) for name, several in points.items() for point in several],
        choices=list(choice_sentences(result)),
        validation=[
            chart for name, world in result.worlds.items() if (chart := feasibility_chart(name, world))
        ],
        split=result.split,
        calibration_images=result.calibration_images,
        reliability=list(reliability_charts(result)),
        calibration_errors=[
            (f"{name} world, {level}", [(f"{before:.1f}", ""), (f"{after:.1f}", "")])
            for name, world in result.worlds.items()
            if world.measured.confidence
            for level, (before, after) in world.measured.confidence.errors.items()
        ],
        thresholds=[
            (name, threshold_rows(world.measured.confidence))
            for name, world in result.worlds.items()
            if world.measured.confidence and world.measured.confidence.confidence.promises
        ],
        calibration_text=calibration_text(result),
        worlds=[world_section(name, world, result, images) for name, world in result.worlds.items()],
    )


def reliability_charts(result: Result) -> Iterator[Markup]:
    """Confidence in the best pair against accuracy, before the temperatures and after."""
    measured = {name: world.measured.confidence for name, world in result.worlds.items()}
    for side, title in (("before", "before temperature"), ("after", "after temperature")):
        lines = [
            (world_style(name), bin_confidences(found.probability["pair"], found.right["pair"]))
            for name, one in measured.items()
            if one and (found := getattr(one, side))
        ]
        if lines:
            yield charts.calibration_chart(lines, f"Calibration {title}")
    if not any(measured.values()):
        yield charts.calibration_chart(
            [(world_style(n), reliability(w.measured.summary, w.bias)) for n, w in result.worlds.items()]
        )


def threshold_rows(measured: MeasuredConfidence) -> list[tuple[str, list[tuple[str, str]]]]:
    """For every promised precision and verdict: threshold, coverage and precision on both splits."""

    def share(value: float | None) -> str:
        return UNDEFINED if value is None else f"{100 * value:.1f}"

    return [
        (
            f"{100 * kept.precision:.0f} %, {kept.level}",
            [
                (
                    UNDEFINED if kept.threshold.probability is None else f"{kept.threshold.probability:.3f}",
                    "",
                ),
                (share(kept.threshold.coverage), ""),
                (share(kept.threshold.precision), ""),
                (share(kept.coverage), ""),
                (share(kept.measured), " to ".join(f"{100 * side:.1f}" for side in kept.interval or ())),
            ],
        )
        for kept in measured.kept
    ]


def world_style(name: str) -> str:
    return STYLES.get(name, "series-1")


def metric_cells(world: WorldResult) -> list[tuple[str, str]]:
    return [format_cell(getattr(world.metrics, name), world.intervals[name]) for name in METRIC_NAMES]


def top_k_cells(world: WorldResult, group: str) -> list[tuple[str, str]]:
    return [format_cell(shares[group], world.top_k_intervals[k][group]) for k, shares in world.top_k.items()]


def format_cell(value: float | None, interval: Interval | None) -> tuple[str, str]:
    """A number, and its interval for the line below."""
    return format_metric(value), f"{interval.low:.1f} to {interval.high:.1f}" if interval else ""


def operating_points(world: WorldResult, result: Result) -> list[charts.OperatingPoint]:
    """Best harmonic mean, the bias of predictions, and no bias; nothing where the curve is undefined."""
    summary, seen = world.measured.summary, world.measured.summary.truth_seen
    curve = seen_unseen_curve(summary, result.protocol)
    if world.metrics.bias is None:
        return []
    best = curve.best
    points = [
        charts.OperatingPoint(
            "dot",
            float(curve.unseen[best]),
            float(curve.seen[best]),
            f"best harmonic mean, bias {world.metrics.bias:.3g}",
        )
    ]
    biases: dict[str, tuple[charts.Marker, float]] = {"no bias": ("square", 0.0)}
    if result.calibration:  # a score file has none
        biases = {"bias of predictions": ("ring", world.bias), **biases}
    for text, (marker, bias) in biases.items():
        right = summary.correct(bias)
        unseen_accuracy, seen_accuracy = (100 * float(right[group].mean()) for group in (~seen, seen))
        points.append(charts.OperatingPoint(marker, unseen_accuracy, seen_accuracy, f"{text}, {bias:.3g}"))
    return points


def curve_chart(points: dict[str, list[charts.OperatingPoint]], result: Result) -> Markup | None:
    """The seen-unseen curves of all worlds; None where they are undefined."""
    worlds = []
    for name, world in result.worlds.items():
        curve = seen_unseen_curve(world.measured.summary, result.protocol)
        if curve.is_defined:
            worlds.append(charts.WorldCurve(world_style(name), curve, points[name]))
    return charts.seen_unseen_chart(worlds) if worlds else None


def feasibility_chart(name: str, world: WorldResult) -> Markup | None:
    choice = world.feasibility
    if choice is None:
        return None
    label = "threshold" if choice.mode == "mask" else "lambda"
    return charts.validation_chart(choice.candidates, choice.value, label, world_style(name))


def world_section(name: str, world: WorldResult, result: Result, images: Path | None) -> WorldSection:
    """Confusions, hardest pairs and the tables of one world."""
    summary, space = world.measured.summary, world.measured.space
    return WorldSection(
        name,
        world_style(name),
        [
            (f"{kind}s", charts.confusion_map(confusion(summary, space, kind, world.bias)))
            for kind in PRIMITIVE_KINDS
        ],
        [hard_pair(row, world, result, images) for row in world.hardest(HARDEST_PAIRS)],
        [
            (title, sorted(rows, key=difficulty))
            for title, rows in (("pairs", world.pairs), ("states", world.states), ("objects", world.objects))
        ],
    )


def hard_pair(row: BreakdownRow, world: WorldResult, result: Result, images: Path | None) -> HardPair:
    """A pair's numbers and some of its images."""
    if images is None:
        return HardPair(row, (), 0)
    index = [" ".join(pair) for pair in world.measured.space.pairs].index(row.name)
    rows: Iterator[int] = iter(np.flatnonzero(world.measured.summary.truth == index)[:PHOTOS_PER_PAIR])
    photos, unreadable = [], 0
    for i in rows:
        try:
            image = read(images / result.images[i], PHOTO_SIDE)
        except UnreadableError:
            unreadable += 1
        else:
            photos.append(data_url(thumbnail(image, PHOTO_SIDE)))
    return HardPair(row, photos, unreadable)
