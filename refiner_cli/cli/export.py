"""``refiner export``: a run's best model as one folder that needs nothing else, or on the Hub."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from refiner_cli.cli.common import open_model
from refiner_cli.cli.console import Json, terminal
from refiner_cli.cli.outputs import check_output_folder
from refiner_cli.errors import UsageError

if TYPE_CHECKING:
    from refiner_cli.core.model_io.card import CardFacts
    from refiner_cli.core.model_io.checkpoint import ModelInfo

MAX_EVALUATION_BYTES = 2**28


def export(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run directory, an exported model directory, or hf-hub:OWNER/NAME."
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="The folder to make; with --push it may be left out."),
    ] = None,
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16"], typer.Option(help="Type of the stored weights.")
    ] = "fp32",
    backbone: Annotated[
        bool,
        typer.Option(
            "--backbone/--no-backbone",
            help="Include the frozen backbone, or only name it with its fingerprint: a few MB.",
        ),
    ] = True,
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
    """Write safetensors weights, configuration, label space, preprocessing, a model card and checksums."""
    if folder is None and push is None:
        raise UsageError("There is no place to export to.", hint="Name a folder, or --push OWNER/NAME.")
    if private and push is None:
        raise UsageError("--private needs --push.")
    from refiner_cli.core.model_io.export import export_model, require_absent
    from refiner_cli.core.model_io.hub import HubName, open_repository, push_folder

    if folder is not None:
        require_absent(folder)
        check_output_folder("DIR", folder)
    figures = read_evaluation(evaluation) if evaluation else None
    name = HubName.parse(push) if push else None
    model, info = open_model(run, "cpu")
    if name:  # a token that is refused is better known before the work
        open_repository(name, private=private)
    result: dict[str, Any] = {"schema": "refiner.export/1"}
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model"
        facts = card_facts(info, str(name or "."), figures)
        size = export_model(place, model, info, dtype=dtype, with_backbone=backbone, facts=facts)
        result |= {"folder": str(folder) if folder else None, "bytes": size}
        if name:
            terminal.note(f"uploading {size / 1e6:.1f} MB to {name}")
            result |= {"repository": name.repository, "commit": push_folder(place, name)}
    if as_json:
        terminal.json(result)
        return
    if folder:
        terminal.data(f"{folder} ({size / 1e6:.1f} MB)")
    if name:
        terminal.data(f"{name}@{result['commit']}")
    terminal.next("refiner", "predict", folder or f"hf-hub:{name}", "PHOTOS", "-o", "rows.csv")


def card_facts(info: ModelInfo, place: str, figures: dict[str, Any] | None) -> CardFacts:
    """What the card says besides what the model knows."""
    from refiner_cli.core.model_io.card import UNKNOWN_LICENCE, CardFacts

    return CardFacts(place, licence_of_data(info) or UNKNOWN_LICENCE, figures)


def licence_of_data(info: ModelInfo) -> str:
    """The licence of a catalogue dataset, or a sentence on the file that lies beside the data; else empty."""
    from refiner_cli.data.download.catalog_files import load_catalogue
    from refiner_cli.data.paths import home

    entry = load_catalogue(home(os.environ).root).datasets.get(info.dataset)
    if entry:
        return entry.licence
    for name in ("LICENSE", "LICENSE.txt", "LICENCE"):
        file = Path(info.dataset_path) / name
        if info.dataset_path and file.is_file():
            lines = file.read_text("utf-8", "replace").split("\n")
            return next((line.strip().replace("|", "/") for line in lines if line.strip()), "")
    return ""


def read_evaluation(file: Path) -> dict[str, Any]:
    """The object that ``refiner eval --json`` printed. Raises UsageError for anything else."""
    try:
        if file.stat().st_size > MAX_EVALUATION_BYTES:
            raise ValueError("it is too large")
        content = json.loads(file.read_text("utf-8"))
        if content["schema"] != "refiner.eval/1":
            raise ValueError(f"its schema is {content['schema']!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{file} is not the output of 'refiner eval --json' ({error}).",
            hint=f"Make it with: refiner eval RUN --json > {file}",
        ) from None
    return dict(content)
