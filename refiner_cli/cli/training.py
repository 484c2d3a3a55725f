"""Carrying out ``refiner train``: one run or several seeds, fresh or resumed, alone or under torchrun."""

from __future__ import annotations

import datetime as dt
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refiner_cli.cli.console import new_table, terminal
from refiner_cli.cli.signals import StopRequest, stop_on_signal
from refiner_cli.errors import RefinerError
from refiner_cli.metric_names import HEADLINE_METRICS, format_metric

if TYPE_CHECKING:
    from collections.abc import Callable

    from refiner_cli.config import Config
    from refiner_cli.core.runtime.distributed import DistributedContext
    from refiner_cli.training.events import Event
    from refiner_cli.training.trainer import Trainer

DATA_BOUND = 0.2  # share of the time spent waiting for data from which on it is worth a word


@dataclass(frozen=True)
class TrainRequest:
    """What the command line asks for."""

    dataset: str
    config: Config | None  # None: go on with what lies in ``out``
    out: Path | None
    seeds: int


def run_training(order: TrainRequest, *, as_json: bool) -> int:
    """Train, print the result, return the exit code."""
    from refiner_cli.core.runtime.distributed import process_group

    with (
        stop_on_signal(terminal.note) as wish,
        process_group(os.environ, gpu=on_gpu(order), lost=stop_after_lost_rank) as ranks,
    ):
        terminal.quiet = terminal.quiet or not ranks.is_main
        result = train_all(order, ranks, wish)
        if ranks.is_main:
            (terminal.json if as_json else show_training)(result)
        return wish.exit_code if result["interrupted"] else 0


def on_gpu(order: TrainRequest) -> bool:
    """Whether the processes of torchrun take a GPU each."""
    from refiner_cli.core.runtime.device import pick_device
    from refiner_cli.training.run_dir import Run

    if "WORLD_SIZE" not in os.environ:
        return False
    config = order.config
    if config is None and order.out and (order.out / "run.json").is_file():
        config = Run.open(order.out).config
    return pick_device(config.device if config else "auto")[0].type == "cuda"


def stop_after_lost_rank(reason: str) -> None:
    """End this process: the main thread may sit in an exchange that never comes back."""
    terminal.error(RefinerError(reason, hint="Go on with --resume."))
    sys.stderr.flush()
    os._exit(RefinerError.exit_code)


def train_all(order: TrainRequest, ranks: DistributedContext, stop: StopRequest) -> dict[str, Any]:
    """The run, or one after the other those of several seeds."""
    from refiner_cli.training.run_dir import Run
    from refiner_cli.training.seeds import FILE, SeedRuns

    out = order.out or Path(ranks.broadcast(str(default_folder(order))))
    if order.config is None and not (out / FILE).is_file():
        return {"schema": "refiner.train/1", **fit_with_progress(resumed_trainer(out, ranks), stop)}
    if order.config is not None and order.seeds == 1:
        return {
            "schema": "refiner.train/1",
            **fit_with_progress(new_trainer(order.dataset, order.config, out, ranks), stop),
        }
    if order.config is not None:
        if ranks.is_main:
            SeedRuns.create(out, range(order.config.seed, order.config.seed + order.seeds))
        ranks.barrier()
    several = SeedRuns.open(out)
    runs: list[dict[str, Any]] = []
    for seed in several.seeds:
        folder = several.run(seed)
        terminal.note(f"seed {seed}, {len(runs) + 1} of {len(several.seeds)}")
        if (folder / "run.json").is_file():
            training = resumed_trainer(folder, ranks)
        else:
            first = None if order.config else Run.open(several.run(several.seeds[0]))
            config = order.config or (first.config if first else None)
            if config is None:
                raise AssertionError("either the order or the first run says what to train")
            dataset = order.dataset or (first.dataset.path if first else "")
            training = new_trainer(dataset, config.model_copy(update={"seed": seed}), folder, ranks)
        runs.append(fit_with_progress(training, stop))
        if runs[-1]["interrupted"]:
            break
    result: dict[str, Any] = {
        "schema": "refiner.train-seeds/1", "folder": str(out), "runs": runs,
        "interrupted": runs[-1]["interrupted"],
    }  # fmt: skip
    if not result["interrupted"] and ranks.is_main:
        result |= several.finish([run["val"] for run in runs])
    return result


def default_folder(order: TrainRequest) -> Path:
    stamp = dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    method = order.config.method if order.config else "run"
    return Path("runs") / f"{Path(order.dataset).name}-{method}-{stamp}"


def new_trainer(dataset: str, config: Config, folder: Path, ranks: DistributedContext) -> Trainer:
    """A new run in its directory. The first process goes ahead: it may have to draw the demo."""
    from refiner_cli.cli.common import open_dataset
    from refiner_cli.training.run_dir import DatasetRef, Run
    from refiner_cli.training.setup import build_trainer, environment

    if ranks.is_main:
        benchmark = open_dataset(dataset)
        ref = DatasetRef(benchmark.name, str(benchmark.root.resolve()), benchmark.fingerprint())
        Run.create(folder, config, ref, environment() | {"arguments": sys.argv})
    ranks.barrier()
    return build_trainer(Run.open(folder), open_dataset(dataset), terminal.note, ranks)


def resumed_trainer(folder: Path, ranks: DistributedContext) -> Trainer:
    """The training of an existing run, at its last whole checkpoint."""
    from refiner_cli.data.benchmark import load_benchmark
    from refiner_cli.training.run_dir import Run
    from refiner_cli.training.setup import environment, resume_trainer

    run = Run.open(folder)
    training = resume_trainer(
        run, load_benchmark(Path(run.dataset.path), run.dataset.name), terminal.note, ranks
    )
    if ranks.is_main and training.step < training.total:
        run.note_environment(environment() | {"arguments": sys.argv}, training.step)
    ranks.barrier()
    return training


def fit_with_progress(training: Trainer, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Run to the end and tell what happens."""
    from refiner_cli.training.events import StepDone, Stopped

    stopped = False
    with terminal.progress("training") as progress:
        for event in training.fit(stop):
            show_event(event)
            stopped = stopped or isinstance(event, Stopped)
            if isinstance(event, StepDone):
                progress(event.step, event.total)
    best = training.run.read_best() or {}
    return {"run": str(training.run.folder), "seed": training.run.config.seed, "step": training.step,
            "best_step": best.get("step"), "val": best.get("val"), "interrupted": stopped}  # fmt: skip


def show_event(event: Event) -> None:
    from refiner_cli.training.events import Stopped, Validated

    if isinstance(event, Validated):
        values = " ".join(f"{m} {format_metric(getattr(event.metrics, m))}" for m in HEADLINE_METRICS)
        mark = "  best so far" if event.best else ""
        terminal.note(
            f"epoch {event.epoch}, step {event.step}: validation {values}, "
            f"{event.waiting:.0%} of the time waiting for images{mark}"
        )
        if event.waiting > DATA_BOUND:
            terminal.note("Decoding holds the training up: try more processes, --set train.num_workers=N.")
    elif isinstance(event, Stopped):
        terminal.note(f"stopped after step {event.step}; the state is saved, go on with --resume")
    elif event.skipped:
        terminal.note(f"step {event.step} skipped: {event.skipped}")


def show_training(result: dict[str, Any]) -> None:
    """The result as a table, and where it lies."""
    if "runs" not in result:
        if result["val"]:
            table = new_table("Best on validation", "step", *HEADLINE_METRICS)
            table.add_row(
                str(result["best_step"]), *(format_metric(result["val"][name]) for name in HEADLINE_METRICS)
            )
            terminal.table(table)
            terminal.data(f"run {result['run']}")
        return
    table = new_table("Best on validation, by seed", "seed", "step", *HEADLINE_METRICS)
    for run in result["runs"]:
        if run["val"]:
            values = [format_metric(run["val"][name]) for name in HEADLINE_METRICS]
            table.add_row(str(run["seed"]), str(run["best_step"]), *values)
    for name in ("mean", "deviation"):
        if name in result:
            table.add_row(name, "", *(format_metric(result[name][m]) for m in HEADLINE_METRICS))
    terminal.table(table)
    terminal.data(f"runs {result['folder']}")
