"""``refiner predict``: the compositions of images, folders of them, or a list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from refiner_cli.cli.common import Device, ModelPath, Precision, Workers
from refiner_cli.cli.console import Json
from refiner_cli.cli.inputs import PATHS_HELP, Exclude, Include, NullSeparated
from refiner_cli.cli.part_options import Devices, Engine, PartShare, PartSize, choose_parts
from refiner_cli.cli.predict_request import PredictRequest, RowsFormat
from refiner_cli.cli.prediction_rows import choose_rows
from refiner_cli.errors import UsageError


def predict(
    model: ModelPath,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help=f"{PATHS_HELP}; or an index (see 'refiner index')."),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--out",
            metavar="PATH",
            help="Output file (.jsonl, .csv or .parquet), or a folder for parts (DIR/); the same command "
            "again resumes it.",
        ),
    ] = None,
    output_format: Annotated[
        RowsFormat | None,
        typer.Option(
            "--format", help="Format of the rows on stdout.  [a table on a terminal, else JSON lines]"
        ),
    ] = None,
    wide: Annotated[
        bool,
        typer.Option("--wide", help="CSV with every column, for all --top-k predictions.  [the best three]"),
    ] = False,
    top_k: Annotated[int, typer.Option(min=1, help="Predictions per image.")] = 5,
    world: Annotated[
        Literal["closed", "open"],
        typer.Option(help="Candidates: the pairs of the model, or every state with every object."),
    ] = "closed",
    min_precision: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Say of each image the pair, else the object or state alone, that is right with this share; "
            "else unknown.",
        ),
    ] = None,
    min_probability: Annotated[
        float | None, typer.Option(metavar="P", help="The same with a probability of at least P.")
    ] = None,
    states: Annotated[Path | None, typer.Option(help="Text file of your own states, one per line.")] = None,
    objects: Annotated[Path | None, typer.Option(help="Text file of your own objects, one per line.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Text file of your own pairs, 'state object' per line.")
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    null: NullSeparated = False,
    boxes: Annotated[
        Path | None,
        typer.Option(help="Recognise the boxes of a detector: MegaDetector or COCO JSON, or a table."),
    ] = None,
    box_margin: Annotated[
        float, typer.Option(min=0, max=10, help="Enlarge boxes on every side, by this share of their size.")
    ] = 0.0,
    box_confidence: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out boxes with a lower confidence.")
    ] = 0.2,
    object_states: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="For the N best objects list every state, with a probability of its own; JSON lines only.",
        ),
    ] = 0,
    on_error: Annotated[
        Literal["skip", "fail"],
        typer.Option(help="What to do with an unreadable image: write a row with the error, or stop."),
    ] = "skip",
    keep_errors: Annotated[
        bool, typer.Option("--keep-errors", help="Do not try images again whose row is an error.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard an existing output instead of resuming it.")
    ] = False,
    gallery: Annotated[
        Path | None, typer.Option(help="Write an .html page with the images and their predictions.")
    ] = None,
    heatmaps: Annotated[
        Path | None, typer.Option(help="Folder for attention maps: what each concept query attends to.")
    ] = None,
    keep_index: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep an index of the images as well, as 'refiner index' does."),
    ] = None,
    part: PartShare = None,
    part_size: PartSize = 4096,
    devices: Devices = None,
    engine: Engine = "local",
    device: Device = "auto",
    precision: Precision = "auto",
    batch: Annotated[int, typer.Option(min=0, help="Images per batch; 0: automatic.")] = 0,
    workers: Workers = -1,
    as_json: Json = False,
) -> None:
    """Recognise images, one row per image. The same command again resumes where it stopped."""
    parts = choose_parts(out, part, part_size, devices, engine)
    if out is None and (as_json or gallery):
        raise UsageError("A summary or a gallery needs the rows in a file.", hint="Add -o FILE.")
    rows = choose_rows(output_format, Path(out) if out else None, wide=wide, parts=parts is not None)
    if object_states and (Path(out).suffix.lower() != ".jsonl" if out else rows != "jsonl"):
        raise UsageError("--object-states needs JSON lines.", hint="Use -o FILE.jsonl, or --format jsonl.")
    check_verdicts(min_precision, min_probability)
    request = PredictRequest(
        model=model,
        paths=paths,
        out=Path(out) if out else None,
        parts=parts,
        rows=rows,
        wide=wide,
        top_k=top_k,
        object_states=object_states,
        min_precision=min_precision,
        min_probability=min_probability,
        world=world,
        states=states,
        objects=objects,
        pairs=pairs,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        null=null,
        boxes=boxes,
        box_margin=box_margin,
        box_confidence=box_confidence,
        stop_at_error=on_error == "fail",
        keep_errors=keep_errors,
        overwrite=overwrite,
        gallery=gallery,
        heatmaps=heatmaps,
        keep_index=keep_index,
        device=device,
        precision=precision,
        batch=batch,
        workers=workers,
    )
    if parts:
        from refiner_cli.cli.part_prediction import predict_parts

        predict_parts(request, as_json=as_json)
        return
    from refiner_cli.cli.prediction import run_prediction

    run_prediction(request, as_json=as_json)


def check_verdicts(precision: float | None, probability: float | None) -> None:
    """Raise UsageError for values that ask for no verdict there is."""
    if precision is not None and probability is not None:
        raise UsageError("--min-precision and --min-probability exclude each other.", hint="Give one.")
    for option, value in (("--min-precision", precision), ("--min-probability", probability)):
        if value is not None and not 0 < value < 1:
            raise UsageError(f"{option} {value:g} is not between 0 and 1.", hint="Write it like 0.9.")
