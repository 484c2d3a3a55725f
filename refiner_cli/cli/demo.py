"""``refiner demo``: data, training, evaluation, prediction and export in a few minutes, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refiner_cli.cli.common import Device
from refiner_cli.cli.console import Json, new_table, terminal
from refiner_cli.cli.outputs import check_new_folder
from refiner_cli.cli.training_view import fit_with_progress
from refiner_cli.metric_names import HEADLINE_METRICS, format_metric


def demo(
    out: Annotated[Path, typer.Option(help="A new folder for the output.")] = Path("refiner-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Determines the images and the training.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Try everything on a small drawn dataset.

    Draws it, trains, evaluates, predicts and exports: offline, without a GPU, in some minutes.
    """
    check_new_folder("--out", out)
    from refiner_cli.demo.walkthrough import run_demo

    result = run_demo(out, seed=seed, device=device, log=terminal.note, follow=fit_with_progress)
    paths = {name: str(getattr(result, name)) for name in ("run", "predictions", "export", "picture")}
    results = {"zero_shot": result.zero_shot, "refiner": result.refiner}
    if as_json:
        worlds = {name: {w: m.to_json() for w, m in found.items()} for name, found in results.items()}
        terminal.json(
            {"schema": "refiner.demo/1", **worlds, "seconds": round(result.seconds, 1), "paths": paths}
        )
        return
    table = new_table("Demo, test split", "", *HEADLINE_METRICS)
    for world in ("closed", "open"):
        for method, title in (("zero_shot", "CLIP zero-shot"), ("refiner", "Refiner")):
            metrics = results[method][world]
            table.add_row(
                f"{title}, {world} world", *(format_metric(getattr(metrics, m)) for m in HEADLINE_METRICS)
            )
    terminal.table(table)
    for name, path in paths.items():
        terminal.data(f"{name:12} {path}")
    terminal.data(f"{'took':12} {result.seconds:.0f} s")
