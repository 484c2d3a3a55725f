"""One self-contained page about an evaluation: no script, no network, readable in ten years.

It only shows what a :class:`~refiner_cli.evaluation.result.Result` holds; nothing is computed from
test labels here that could flow back into a choice.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image, ImageOps

from refiner_cli.data.images import decode
from refiner_cli.evaluation.metrics.bias_sweep import seen_unseen_curve
from refiner_cli.evaluation.metrics.bootstrap import Interval
from refiner_cli.evaluation.metrics.breakdown import (
    BreakdownRow,
    PrimitiveKind,
    confusion,
    difficulty,
    reliability,
)
from refiner_cli.evaluation.report import charts
from refiner_cli.evaluation.result import Result, WorldResult
from refiner_cli.files import atomic_file
from refiner_cli.metric_names import METRIC_NAMES, UNDEFINED, format_metric

SIDE = 160  # pixels of a thumbnail
PHOTOS = 3  # thumbnails of a pair
HARDEST = 12
PARTS: tuple[PrimitiveKind, ...] = ("state", "object")
HEADINGS = {"state_acc": "state", "object_acc": "object"}


def write_report(file: Path, result: Result, images: Path | None = None) -> None:
    """Write the page; it appears whole.

    Args:
        images: the folder that ``result.images`` are relative to; None: no thumbnails.

    Raises:
        DatasetError: an image that is shown cannot be read.
    """
    page = resources.files("refiner_cli.evaluation.report").joinpath("page.html")
    template = Template(page.read_text("utf-8"))
    sizes = next(iter(result.worlds.values())).metrics
    subtitle = (
        f"{result.split}, {result.protocol} protocol, {sizes.n_seen} images of seen and {sizes.n_unseen} of "
        "unseen pairs"
    )
    text = template.substitute(
        title=html.escape(f"Evaluation on {result.dataset}"),
        subtitle=html.escape(subtitle),
        metrics=metrics_table(result),
        draws=result.bootstrap_samples,
        top=top_table(result),
        curve=charts.seen_unseen([line(name, world, result) for name, world in result.worlds.items()]),
        key=key(result),
        points=points_table(result),
        choices="".join(f"<li>{html.escape(text)}</li>" for text in choices(result)),
        tried="".join(tried(world) for world in result.worlds.values()),
        calibration=charts.calibration(
            [(name, reliability(w.measured.summary, w.bias)) for name, w in result.worlds.items()]
        ),
        calibration_text=html.escape(calibration_text(result)),
        worlds="".join(world_part(name, world, result, images) for name, world in result.worlds.items()),
    )
    with atomic_file(file) as part:
        part.write_text(text, "utf-8")


def table(headings: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Cells are HTML already."""
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{value}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def between(value: float | None, span: Interval | None) -> str:
    """A number with its interval below."""
    below = f"{span.low:.1f} to {span.high:.1f}" if span else ""
    return f"{format_metric(value)}<small>{below}</small>"


def metrics_table(result: Result) -> str:
    rows = (
        [name, *(between(getattr(world.metrics, metric), world.intervals[metric]) for metric in METRIC_NAMES)]
        for name, world in result.worlds.items()
    )
    return table(["world", *(HEADINGS.get(name, name) for name in METRIC_NAMES)], rows)


def top_table(result: Result) -> str:
    first = next(iter(result.worlds.values()))
    rows = (
        [
            f"{name}, {group}",
            *(between(shares[group], world.top_k_intervals[k][group]) for k, shares in world.top_k.items()),
        ]
        for name, world in result.worlds.items()
        for group in ("all", "seen", "unseen")
    )
    return table(["truth among the k best", *(f"top-{k}" for k in first.top_k)], rows)


def operating_points(world: WorldResult, result: Result) -> list[charts.Mark]:
    """Best harmonic mean, validation's bias, and no bias at all."""
    digest, seen = world.measured.summary, world.measured.summary.truth_seen
    points = seen_unseen_curve(digest, result.protocol)
    best = points.best
    found = []
    if world.metrics.bias is not None:
        text = f"best harmonic mean, bias {world.metrics.bias:.3g}"
        found.append(charts.Mark("dot", float(points.unseen[best]), float(points.seen[best]), text))
    others = [("square", 0.0, "no bias")]
    if result.calibration:  # a score file brings none
        others.insert(0, ("ring", world.bias, "validation's bias"))
    for shape, bias, text in others:
        right = digest.correct(bias)
        if points.is_defined:
            u, s = (100 * float(right[group].mean()) for group in (~seen, seen))
            found.append(charts.Mark(shape, u, s, f"{text}, {bias:.3g}"))
    return found


def line(name: str, world: WorldResult, result: Result) -> charts.ChartLine:
    return charts.ChartLine(
        name, seen_unseen_curve(world.measured.summary, result.protocol), operating_points(world, result)
    )


def key(result: Result) -> str:
    worlds = "".join(f'<b class="{name}">&#9473; {name} world</b>' for name in result.worlds)
    ring = "<span>&#9675; the bias that validation chose</span>" if result.calibration else ""
    return f"{worlds}<span>&#9679; best harmonic mean</span>{ring}<span>&#9632; no bias</span>"


def points_table(result: Result) -> str:
    rows = (
        [f"{name}: {html.escape(point.text)}", f"{point.seen:.1f}", f"{point.unseen:.1f}"]
        for name, world in result.worlds.items()
        for point in operating_points(world, result)
    )
    return table(["operating point", "seen", "unseen"], rows)


def choices(result: Result) -> Iterator[str]:
    """A sentence for everything that was chosen or could be suspected to be."""
    if result.calibration is None:
        yield "Nothing was chosen: the scores are taken as they came."
    elif result.split == "val":
        yield "These are numbers of the validation split, which the choices below were made on."
    else:
        yield "Nothing was chosen on the test split."
    if weights := result.calibration:
        yield (
            f"Weights of the state and object evidence ({weights.state_weight:g} and "
            f"{weights.object_weight:g}) and the bias {weights.bias:.3g}: the best closed-world AUC on "
            "validation, found in training and stored with the model."
        )
    for name, world in result.worlds.items():
        if choice := world.feasibility:
            what = "threshold" if choice.mode == "mask" else "lambda"
            yield (
                f"Feasibility in the {name} world ({choice.mode}, {what} {choice.value:.4g}): the best of "
                f"{len(choice.candidates)} values on validation, AUC {choice.val_auc:.1f} there; words "
                f"compared by {choice.source}."
            )
    for name, world in result.worlds.items():
        if undefined := world.metrics.undefined():
            reason = next(iter(undefined.values()))
            yield f"Undefined in the {name} world: {', '.join(undefined)}, as the split has {reason}."
    yield (
        "Exact protocol: every bias that changes a prediction is visited; a tie never counts as right."
        if result.protocol == "exact"
        else "Legacy protocol: the published sweep of about 20 biases, for comparison with printed numbers."
    )
    yield f"Intervals: {result.bootstrap_samples} bootstrap draws over the images, seed {result.seed}."


def tried(world: WorldResult) -> str:
    choice = world.feasibility
    if choice is None:
        return ""
    return charts.tried(choice.candidates, choice.value, "threshold" if choice.mode == "mask" else "lambda")


def calibration_text(result: Result) -> str:
    errors = (
        f"{reliability(world.measured.summary, world.bias).error:.1f} points in the {name} world"
        for name, world in result.worlds.items()
    )
    bias = "at validation's bias" if result.calibration else "without a bias"
    return (
        "A model that is 70 % sure should be right 7 times in 10: the dashed line. The softmax runs over all "
        f"candidates {bias}. Mean distance from the line: {' and '.join(errors)}."
    )


def world_part(name: str, world: WorldResult, result: Result, images: Path | None) -> str:
    """Confusions, hardest pairs and the tables of one world."""
    digest, space = world.measured.summary, world.measured.space
    maps = [charts.confusion_map(confusion(digest, space, part, world.bias)) for part in PARTS]
    columns = (
        f'<div class="scroll"><h3>{part}s</h3>{drawn}</div>' for part, drawn in zip(PARTS, maps, strict=True)
    )
    hard = "".join(hard_pair(row, world, result, images) for row in world.hardest(HARDEST))
    tables = "".join(
        f"<details><summary>All {len(rows)} {what} with images</summary>{rows_table(rows)}</details>"
        for what, rows in (("pairs", world.pairs), ("states", world.states), ("objects", world.objects))
    )
    return (
        f"<h2>Taken for each other, {name} world</h2>"
        '<p class="soft">Rows are true, columns predicted, percent of a row; the number beside a name counts '
        "its images. At most 24, those with the most mistakes.</p>"
        f'<div class="columns">{"".join(columns)}</div>'
        f'<h2>Hardest unseen pairs, {name} world</h2><div class="hard">{hard}</div>'
        f"<h2>Tables, {name} world</h2>{tables}"
    )


def hard_pair(row: BreakdownRow, world: WorldResult, result: Result, images: Path | None) -> str:
    """A pair's numbers and some of its images."""
    photos = ""
    if images is not None:
        label = [" ".join(pair) for pair in world.measured.space.pairs].index(row.name)
        places = np.flatnonzero(world.measured.summary.truth == label)[:PHOTOS]
        photos = "".join(f'<img src="{thumbnail(images / result.images[i])}" alt="">' for i in places)
        photos = f'<div class="photos">{photos}</div>'
    mistaken = f", most often taken for {row.mistaken_for} ({row.mistaken})" if row.mistaken_for else ""
    said = html.escape(f"{row.accuracy:.0f} % of {row.images} right{mistaken}")
    return f'<div><b>{html.escape(row.name)}</b><br><span class="soft">{said}</span>{photos}</div>'


def rows_table(rows: Sequence[BreakdownRow]) -> str:
    """The worst first."""
    return table(
        ["", "images", "right", "margin", "most often taken for"],
        (
            [html.escape(row.name) + (" <small>unseen</small>" if row.seen is False else ""), str(row.images),
             f"{row.accuracy:.1f}", UNDEFINED if row.margin is None else f"{row.margin:.2f}",
             f"{html.escape(row.mistaken_for)} ({row.mistaken})" if row.mistaken_for else ""]
            for row in sorted(rows, key=difficulty)
        ),
    )  # fmt: skip


def thumbnail(file: Path) -> str:
    """A small square of an image, inside the page."""
    buffer = io.BytesIO()
    ImageOps.fit(decode(file), (SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
