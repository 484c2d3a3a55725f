"""``refiner export``: a run's best model as one folder that needs nothing else, or on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from refiner_cli.cli.console import Json
from refiner_cli.cli.exporting import ExportRequest, run_export


def export(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run directory, an exported model directory, hf-hub:OWNER/NAME, or, for ONNX, a backbone "
            "by name.",
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="The folder to make; with --push it may be left out."),
    ] = None,
    kind: Annotated[
        Literal["safetensors", "onnx"],
        typer.Option(
            "--format",
            help="safetensors: everything refiner does works on it; onnx: graphs for the CPU that need no "
            "PyTorch and know one list of pairs.",
        ),
    ] = "safetensors",
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"],
        typer.Option(help="Type of the stored weights; ONNX has fp32 and int8, safetensors all but int8."),
    ] = "fp32",
    backbone: Annotated[
        bool,
        typer.Option(
            "--backbone/--no-backbone",
            help="Include the frozen backbone, or only name it with its fingerprint: a few MB.",
        ),
    ] = True,
    world: Annotated[
        Literal["closed", "open"],
        typer.Option(help="ONNX: the pairs of the model, or every state with every object."),
    ] = "closed",
    states: Annotated[
        Path | None, typer.Option(help="ONNX: text file of your own states, one per line.")
    ] = None,
    objects: Annotated[
        Path | None, typer.Option(help="ONNX: text file of your own objects, one per line.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="ONNX: text file of your own pairs, 'state object' per line.")
    ] = None,
    check_images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="ONNX: images that the export is compared with the model on.  [test images, or drawn ones]",
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Upload the folder to this model repository of the Hub."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: make a new repository private.")
    ] = False,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--eval", metavar="FILE", help="What 'refiner eval --json' printed: figures for the model card."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a model as one folder.

    It holds weights, configuration, label space, preprocessing, a model card and checksums.

    An ONNX export is compared with the model at once, and discarded if it does not agree.
    """
    run_export(
        ExportRequest(
            run=run, folder=folder, kind=kind, dtype=dtype, with_backbone=backbone, world=world,
            states=states, objects=objects, pairs=pairs, check_images=check_images, push=push,
            private=private, evaluation=evaluation,
        ),
        as_json=as_json,
    )  # fmt: skip
