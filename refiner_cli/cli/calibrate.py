"""``refiner calibrate``: choose again, on validation, what follows a finished training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from refiner_cli.cli.common import Device, Precision, Workers, runtime_options
from refiner_cli.cli.console import Json, new_table, terminal
from refiner_cli.cli.metrics import BatchOption
from refiner_cli.cli.training_data import open_run_data
from refiner_cli.errors import ModelFileError, UsageError
from refiner_cli.metric_names import HEADLINE_METRICS, format_metric
from refiner_cli.printable import quoted


def recalibrate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a finished run.")],
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Where the dataset is now.  [where it was]")
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="What may be tried, e.g. calibration.tta_shifts=[1,2]; repeatable.  [the run's settings]",
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch: BatchOption = 64,
    workers: Workers = -1,
    as_json: Json = False,
) -> None:
    """Calibrate a finished run again. Its best checkpoint is not trained further.

    Shifted views, interpolation of words, hubness correction, weights of state and object evidence, bias and
    temperatures are chosen on the validation split and stored with the model. Without validation images,
    calibration.folds=N chooses them by cross-validation, which trains N models on parts of the images.
    """
    from refiner_cli.cli.configure import changed_calibration
    from refiner_cli.training.run_dir import CALIBRATION, Run, is_run

    if not is_run(run):
        raise ModelFileError(f"{run} is not a run.", hint="Give the directory that 'refiner train' made.")
    opened = Run.open(run)
    changed = changed_calibration(opened.config, assign or [])
    if not (run / CALIBRATION).is_file():
        raise UsageError(
            f"The training in {run} is not finished.",
            hint=f"Finish it: refiner train --resume --out {quoted(run)}",
        )
    benchmark = open_run_data(opened, dataset or "", hint="Name its new place with --dataset.")
    from refiner_cli.core.model_io.checkpoint import read_model
    from refiner_cli.core.runtime.device import pick_device
    from refiner_cli.training.calibration_stage import CalibrationStage
    from refiner_cli.training.changes import changed_run, check_data
    from refiner_cli.training.run_dir import model_folder
    from refiner_cli.training.setup import cross_validation

    check_data(opened, benchmark)
    benchmark = benchmark.without(opened.skipped)
    with opened.locked(), terminal.progress("calibrating") as progress:
        opened.clean()
        model, _ = read_model(model_folder(run))
        chosen, reason = pick_device(device)
        terminal.note(f"device {chosen} ({reason})")
        options = runtime_options(model.to(chosen), precision, workers, batch)
        opened = changed_run(opened, changed, opened.dataset.path)
        folds = cross_validation(opened, benchmark, model, options, terminal.note).models
        record = CalibrationStage(opened, model, benchmark, options, folds).run_now(progress)
    if as_json:
        terminal.json({**record, "schema": "refiner.calibrate/1", "run": str(run)})
    else:
        show_record(record)


def show_record(record: dict[str, Any]) -> None:
    """What was chosen, and validation before and after."""
    from refiner_cli.cli.training_view import describe_calibration

    measured = record.get("cross_validation", record["val"])
    table = new_table(f"{record['checkpoint']}, chosen on {record['chosen_on']}", "", *HEADLINE_METRICS)
    for name, title in (("before", "plain"), ("after", "calibrated")):
        metrics = measured[name]
        table.add_row(title, *(format_metric(metrics[metric]) for metric in HEADLINE_METRICS))
    terminal.table(table)
    terminal.data(f"chosen {describe_calibration(record['calibration'])}")
    terminal.data(f"tried {len(record['candidates'])} settings in {record['seconds']:.0f} s")
