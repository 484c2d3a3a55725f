"""``refiner bench``: the speed of this machine, against the usual way of doing the same work."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refiner_cli.cli.common import Device, Precision
from refiner_cli.cli.console import Json, new_table, terminal

if TYPE_CHECKING:
    from rich.table import Table

    from refiner_cli.bench.measure import BenchResult


class BenchPart(StrEnum):
    TEXT = "text"
    TRAIN = "train"
    ENCODE = "encode"
    DECODE = "decode"
    PREDICT = "predict"
    ONNX = "onnx"


def bench(
    parts: Annotated[
        list[BenchPart] | None,
        typer.Argument(
            metavar="[PART]...",
            help="What to measure: text, train, encode, decode, predict, onnx.  [all but onnx]",
        ),
    ] = None,
    backbone: Annotated[str, typer.Option(help="An open_clip ViT model (random weights), or tiny.")] = "tiny",
    spaces: Annotated[
        str, typer.Option(help="Label spaces, separated by commas.")
    ] = "mit-states,ut-zappos,c-gqa",
    splits: Annotated[
        Path | None, typer.Option(help="Folder of real pair lists, SPACE/train_pairs.txt.  [made-up names]")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds; the median is reported.")] = 3,
    limit: Annotated[
        int,
        typer.Option(min=0, help="Prompts to measure the full context with, extrapolated to all; 0: all."),
    ] = 128,
    photos: Annotated[
        int, typer.Option(min=2, help="Number of generated photos for decode and predict.")
    ] = 64,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, e.g. train.batch_size=16; repeatable."),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Measure how fast this machine is.

    Text encoding, a training step, image encoding, decoding and prediction, each beside the usual way of
    doing the same. Nothing is downloaded.
    """
    from refiner_cli.bench.suite import BenchOptions, describe_machine, run_bench
    from refiner_cli.settings import from_assignments, resolve

    flags = {"backbone": backbone, "device": device, "precision": precision}
    layers = [(f"--{flag}", {flag: value}) for flag, value in flags.items()]
    config = resolve([("bench", {"pretrained": "none"}), *layers, from_assignments(assign or [])])
    with tempfile.TemporaryDirectory() as folder:
        options = BenchOptions(
            parts=tuple(part.value for part in parts or BenchPart if parts or part is not BenchPart.ONNX),
            spaces=tuple(name.strip() for name in spaces.split(",")),
            splits=splits,
            rounds=rounds,
            limit=limit,
            photos=photos,
            folder=Path(folder),
        )
        results = list(show_results(run_bench(options, config, terminal.note)))
    if as_json:
        terminal.json({
            "schema": "refiner.bench/1", "machine": describe_machine(config), "backbone": config.backbone,
            "results": [result.to_json() for result in results],
        })  # fmt: skip
        return
    terminal.data(f"{backbone}, random weights")
    for work, ways in groupby(results, lambda result: result.name.partition(": ")[0]):
        terminal.table(ways_table(work, list(ways)))


def ways_table(work: str, results: Sequence[BenchResult]) -> Table:
    """The ways of doing one piece of work, side by side."""
    ratios = any(result.ratio for result in results)
    table = new_table(work, "", "value", *(["ratio", "times better than"] if ratios else []))
    for result in results:
        row = [result.name.partition(": ")[2] or "all of it", f"{result.value:.4g} {result.unit}"]
        if ratios:
            baseline = (result.baseline or "").partition(" (")[0]  # what is in brackets stands in its own row
            row += [f"{result.ratio:.2f}" if result.ratio else "", baseline]
        table.add_row(*row)
    return table


def show_results(results: Iterator[BenchResult]) -> Iterator[BenchResult]:
    """Log each result as it arrives: a large backbone takes minutes."""
    for result in results:
        terminal.note(f"{result.name}: {result.value:.4g} {result.unit}")
        yield result
