"""``refiner info``: what a dataset, a run or a model directory holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from refiner_cli.cli.common import open_dataset
from refiner_cli.cli.console import Json, grid, terminal


def info(
    what: Annotated[
        str, typer.Argument(metavar="X", help="A dataset, a run directory or a model directory.")
    ],
    as_json: Json = False,
) -> None:
    """Describe a dataset, a run or a model."""
    folder = Path(what)
    if (folder / "run.json").is_file() or (folder / "config.json").is_file():
        facts = describe_model(folder)
    else:
        facts = describe_dataset(what)
    if as_json:
        terminal.json({"schema": "refiner.info/1", **facts})
        return
    table = grid(what, "", "")
    for name, value in facts.items():
        for key, inner in value.items() if isinstance(value, dict) else [("", value)]:
            shown = f"{inner:.1f}" if isinstance(inner, float) else str(inner)
            table.add_row(f"{name} {key}".strip(), shown)
    terminal.table(table)


def describe_model(folder: Path) -> dict[str, Any]:
    from refiner_cli.core.checkpoint import read_config
    from refiner_cli.core.run import model_folder

    config = read_config(model_folder(folder))
    metrics = config["metrics"]
    return {
        "kind": "model",
        **{key: config[key] for key in ("method", "dataset", "step")},
        "backbone": {key: config["backbone"][key] for key in ("name", "pretrained", "included")},
        "labels": {name: len(names) for name, names in config["labels"].items()},
        "validation": {key: metrics[key] for key in ("S", "U", "HM", "AUC") if key in metrics},
        "calibration": config["calibration"],
    }


def describe_dataset(what: str) -> dict[str, Any]:
    benchmark = open_dataset(what)
    train = set(benchmark.pairs["train"])
    facts: dict[str, Any] = {
        "kind": "dataset", "name": benchmark.name, "path": str(benchmark.root),
        "states": len(benchmark.states), "objects": len(benchmark.objects),
    }  # fmt: skip
    for split, pairs in benchmark.pairs.items():
        seen = sum(pair in train for pair in pairs)
        facts[split] = {
            "seen pairs": seen,
            "unseen pairs": len(pairs) - seen,
            "images": len(benchmark.samples[split]),
        }
    return facts
