"""``refiner export``: a run's best model as one folder that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from refiner_cli.cli.common import open_model
from refiner_cli.cli.console import Json, terminal
from refiner_cli.errors import UsageError


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run directory or an exported model directory.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make.")],
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16"], typer.Option(help="Type of the stored weights.")
    ] = "fp32",
    backbone: Annotated[
        bool, typer.Option("--backbone/--no-backbone", help="Include the frozen backbone, or only name it.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Write safetensors weights, configuration, label space, preprocessing and a model card."""
    if folder.exists():
        raise UsageError(f"{folder} exists already.", hint="Choose a folder that does not exist yet.")
    from refiner_cli.core.model_io.export import export_model

    model, info = open_model(run, "cpu")
    size = export_model(folder, model, info, dtype=dtype, with_backbone=backbone)
    if as_json:
        terminal.json({"schema": "refiner.export/1", "folder": str(folder), "bytes": size})
    else:
        terminal.data(f"{folder} ({size / 1e6:.1f} MB)")
