"""How a training is shown while it runs, and its result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refiner_cli.cli.console import new_table, terminal
from refiner_cli.data.progress import Progress
from refiner_cli.metric_names import HEADLINE_METRICS, format_metric

if TYPE_CHECKING:
    from refiner_cli.config import Config
    from refiner_cli.training.events import Event
    from refiner_cli.training.trainer import Trainer

DATA_BOUND = 0.2  # share of the time spent waiting for data from which on a hint is printed


def fit_with_progress(trainer: Trainer, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Run to the end and show what happens."""
    from refiner_cli.training.events import StepDone, Stopped
    from refiner_cli.training.warm_start import read_taken

    stopped = False
    with terminal.report() as report:
        if terminal.err.is_terminal:  # in a log, ten lines for every validation would be too many

            def watch(done: int, total: int) -> None:
                over = trainer.step == trainer.total and trainer.progress.validated
                report(Progress("count", "calibrating" if over else "validating", done, total or None))

            trainer.watch = watch
        for event in trainer.fit(stop):
            show_event(event, trainer)
            stopped = stopped or isinstance(event, Stopped)
            if isinstance(event, StepDone):
                report(Progress("count", "training", event.step, event.total, f"loss {event.loss:.3g}"))
    best = trainer.run.read_best() or {}
    taken = read_taken(trainer.run.folder)
    return {"run": str(trainer.run.folder), "seed": trainer.run.config.seed, "step": trainer.step,
            "best_step": best.get("step"), "criterion": best.get("criterion"), "val": best.get("val"),
            "interrupted": stopped, **({"init": taken} if taken else {}),
            **({"skipped_images": skipped} if (skipped := list(trainer.run.skipped)) else {})}  # fmt: skip


def show_event(event: Event, trainer: Trainer) -> None:
    from refiner_cli.training.events import CalibrationDone, Stopped, Validated
    from refiner_cli.training.selection import MEANING

    if isinstance(event, Validated):
        values = " ".join(
            f"{name} {format_metric(getattr(event.metrics, name))}" for name in HEADLINE_METRICS
        )
        best = f", best so far by {event.criterion}" if event.best else ""
        terminal.note(
            f"epoch {event.epoch}, step {event.step}: validation {values}{best}, "
            f"{event.waiting:.0%} of the time waiting for images"
        )
        if event.step == 0 and not event.metrics.n_seen + event.metrics.n_unseen:
            terminal.note(
                "There are no validation images: the best checkpoint is selected by "
                f"{MEANING[event.criterion]}, and {calibration_plan(trainer.run.config)}."
            )
        elif event.step == 0 and event.metrics.AUC is None:
            missing = "seen" if event.metrics.n_unseen else "unseen"
            terminal.note(
                f"Validation has no {missing} pair, so AUC is undefined: the best checkpoint is selected by "
                f"{MEANING[event.criterion]}."
            )
        if event.waiting > DATA_BOUND and trainer.config.num_workers >= 0:  # a number that the user chose
            terminal.note("Decoding limits the speed: try more processes, --set train.num_workers=N.")
    elif isinstance(event, CalibrationDone):
        chosen, source = describe_calibration(event.calibration), event.calibration["chosen_on"]
        before, after = (format_metric(found.get(event.criterion)) for found in (event.before, event.after))
        measured = f"; {source} {event.criterion} {before} -> {after}"
        if source == "nothing":
            measured = ", as the settings say"
        terminal.note(f"calibrated {event.checkpoint}: {chosen}{measured}")
    elif isinstance(event, Stopped):
        terminal.note(f"stopped after step {event.step}; the state is saved")
    elif event.skipped:
        terminal.note(f"step {event.step} skipped: {event.skipped}")


def calibration_plan(config: Config) -> str:
    """What follows a training without validation images, as a clause."""
    if folds := config.calibration.folds:
        return f"calibration follows by cross-validation in {folds} parts, a training each"
    return "nothing is calibrated: weights and views are the first that the settings name, the bias is 0"


def describe_calibration(chosen: dict[str, Any]) -> str:
    """The choices of a calibration in a line."""
    temperature = chosen["closed"]["temperatures"]["pair"]
    wide = f" (open world {chosen['open_bias']:.2f})" if "open_bias" in chosen else ""
    return (
        f"{chosen['tta_shifts']} shifted views, words {chosen['wise_ft_alpha']:g}, hubness "
        f"{chosen['hubness_strength']:g}, evidence {chosen['state_weight']:g} and "
        f"{chosen['object_weight']:g}, bias {chosen['bias']:.2f}{wide}, temperature {temperature:.2f}"
    )


def show_training(result: dict[str, Any]) -> None:
    """The result as a table, and where it lies."""
    if "runs" not in result:
        if result["interrupted"]:
            terminal.next("refiner", "train", "--resume", "--out", Path(result["run"]))
        if result["val"]:
            table = new_table(f"Best on validation, by {result['criterion']}", "step", *HEADLINE_METRICS)
            table.add_row(
                str(result["best_step"]), *(format_metric(result["val"][name]) for name in HEADLINE_METRICS)
            )
            terminal.table(table)
            terminal.data(f"run {result['run']}")
            if not result["interrupted"]:
                terminal.next("refiner", "eval", Path(result["run"]))
        return
    table = new_table("Best on validation, by seed", "seed", "step", *HEADLINE_METRICS)
    for run in result["runs"]:
        if run["val"]:
            values = [format_metric(run["val"][name]) for name in HEADLINE_METRICS]
            table.add_row(str(run["seed"]), str(run["best_step"]), *values)
    for name in ("mean", "deviation"):
        if name in result:
            table.add_row(name, "", *(format_metric(result[name][metric]) for metric in HEADLINE_METRICS))
    terminal.table(table)
    terminal.data(f"runs {result['folder']}")
    if result["interrupted"]:
        terminal.next("refiner", "train", "--resume", "--out", Path(result["folder"]))
    else:
        terminal.next("refiner", "eval", Path(result["folder"]))
