"""``refiner eval``: closed and open world metrics of a model on a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from refiner_cli.cli.common import (
    Device,
    ModelPath,
    Precision,
    Workers,
    open_dataset,
    open_model,
    setting_for,
)
from refiner_cli.cli.console import Json, grid, terminal
from refiner_cli.errors import DatasetError

if TYPE_CHECKING:
    from refiner_cli.data.benchmark import World
    from refiner_cli.data.labels import LabelSpace

COLUMNS = ("S", "U", "HM", "AUC", "state_acc", "object_acc")


def evaluate(
    model: ModelPath,
    dataset: Annotated[
        str | None, typer.Option(help="A catalogue name or a folder.  [what it was trained on]")
    ] = None,
    split: Annotated[Literal["val", "test"], typer.Option(help="Which split.")] = "test",
    world: Annotated[Literal["closed", "open", "both"], typer.Option(help="Which pairs compete.")] = "both",
    protocol: Annotated[
        Literal["exact", "legacy"], typer.Option(help="Every breakpoint, or the published 20-point sweep.")
    ] = "exact",
    device: Device = "auto",
    precision: Precision = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Images encoded at once.")] = 64,
    workers: Workers = -1,
    as_json: Json = False,
) -> None:
    """Evaluate a model; nothing is chosen here, all calibration comes from training's validation."""
    from refiner_cli.evaluation.evaluate import evaluate as run

    recogniser, info = open_model(model, device)
    benchmark = open_dataset(dataset or info.dataset_path)
    known = recogniser.space
    if (benchmark.states, benchmark.objects) != (known.states, known.objects):
        raise DatasetError(f"The label space of {benchmark.root} is not the one that {model} was trained on.")
    worlds: list[World] = ["closed", "open"] if world == "both" else [world]
    spaces: dict[str, LabelSpace] = {name: benchmark.label_space(split, name) for name in worlds}
    setting = setting_for(recogniser, precision, workers, batch)
    with terminal.progress("evaluating") as progress:
        found = run(recogniser, benchmark, split, spaces, setting, protocol=protocol, progress=progress)
    result: dict[str, Any] = {
        "schema": "refiner.eval/1", "dataset": benchmark.name, "split": split, "protocol": protocol,
        "worlds": {name: metrics.to_json() for name, metrics in found.items()},
    }  # fmt: skip
    if as_json:
        terminal.json(result)
        return
    table = grid(f"{benchmark.name}, {split}, {protocol} protocol", "world", *COLUMNS)
    for name, metrics in result["worlds"].items():
        table.add_row(name, *(f"{metrics[column]:.1f}" for column in COLUMNS))
    terminal.table(table)
