"""The work of ``refiner train``: one run or several seeds, new or resumed, alone or under torchrun."""

from __future__ import annotations

import datetime as dt
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refiner_cli.cli.console import new_table, terminal
from refiner_cli.cli.signals import StopRequest, stop_on_signal
from refiner_cli.errors import DatasetError, RefinerError, UsageError
from refiner_cli.metric_names import HEADLINE_METRICS, format_metric

if TYPE_CHECKING:
    from collections.abc import Callable

    from refiner_cli.config import Config
    from refiner_cli.core.runtime.distributed import DistributedContext
    from refiner_cli.training.events import Event
    from refiner_cli.training.run_dir import Run
    from refiner_cli.training.trainer import Trainer

MAX_SEED = 2**63 - 1
DATA_BOUND = 0.2  # share of the time spent waiting for data from which on a hint is printed


@dataclass(frozen=True)
class TrainRequest:
    """One ``refiner train`` command."""

    dataset: str  # with --resume: where the dataset is now, or "": where it was
    config: Config | None  # None: resume what lies in ``out``
    out: Path | None
    seeds: int


def run_training(request: TrainRequest, *, as_json: bool) -> int:
    """Train, print the result, return the exit code."""
    from refiner_cli.core.runtime.distributed import process_group

    with (
        stop_on_signal(terminal.note) as stop,
        process_group(os.environ, gpu=on_gpu(request), lost=stop_after_lost_rank) as ranks,
    ):
        terminal.quiet = terminal.quiet or not ranks.is_main
        result = train_all(request, ranks, stop)
        if ranks.is_main:
            (terminal.json if as_json else show_training)(result)
        return stop.exit_code if result["interrupted"] else 0


def on_gpu(request: TrainRequest) -> bool:
    """Whether the processes of torchrun take a GPU each."""
    from refiner_cli.core.runtime.device import pick_device
    from refiner_cli.core.runtime.distributed import launched_ranks
    from refiner_cli.training.run_dir import Run, is_run

    if launched_ranks(os.environ).world_size == 1:
        return False
    config = request.config
    if config is None and request.out and is_run(request.out):
        config = Run.open(request.out).config
    return pick_device(config.device if config else "auto")[0].type == "cuda"


def stop_after_lost_rank(reason: str) -> None:
    """End this process: the main thread may wait for another process for ever."""
    terminal.error(RefinerError(reason, hint="Resume with --resume."))
    sys.stderr.flush()
    os._exit(RefinerError.exit_code)


def train_all(request: TrainRequest, ranks: DistributedContext, stop: StopRequest) -> dict[str, Any]:
    """The run, or one after the other those of several seeds."""
    from refiner_cli.training.seeds import SEEDS_FILE

    out = request.out or Path(ranks.broadcast(str(default_folder(request))))
    if request.seeds > 1 or (request.config is None and (out / SEEDS_FILE).is_file()):
        return train_seeds(request, out, ranks, stop)
    if request.config is None:
        result = fit_with_progress(resumed_trainer(request.dataset, out, ranks), stop)
    else:
        result = new_training(request.dataset, request.config, out, ranks, stop)
    return {"schema": "refiner.train/1", **result}


def train_seeds(
    request: TrainRequest, out: Path, ranks: DistributedContext, stop: StopRequest
) -> dict[str, Any]:
    """One run per seed; those that exist already are resumed."""
    from refiner_cli.training.run_dir import Run, is_run
    from refiner_cli.training.seeds import SeedRuns

    config, dataset = request.config, request.dataset
    if config is not None:
        if config.seed + request.seeds - 1 > MAX_SEED:
            raise UsageError(f"--seeds {request.seeds} from seed {config.seed} on exceed {MAX_SEED}.")
        if ranks.is_main:
            SeedRuns.create(out, range(config.seed, config.seed + request.seeds))
        ranks.barrier()
    several = SeedRuns.open(out)
    runs: list[dict[str, Any]] = []
    for seed in several.seeds:
        folder = several.run(seed)
        terminal.note(f"seed {seed}, {len(runs) + 1} of {len(several.seeds)}")
        if is_run(folder):
            runs.append(fit_with_progress(resumed_trainer(request.dataset, folder, ranks), stop))
        else:
            if config is None:
                first = Run.open(several.run(several.seeds[0]))
                config, dataset = first.config, request.dataset or first.dataset.path
            try:
                seeded = config.model_copy(update={"seed": seed})
                before = several.run(several.seeds[0])  # it keeps what its training started from
                runs.append(new_training(dataset, seeded, folder, ranks, stop, before))
            except BaseException:
                if ranks.is_main:
                    several.abandon()
                raise
        if runs[-1]["interrupted"]:
            break
    result: dict[str, Any] = {
        "schema": "refiner.train-seeds/1", "folder": str(out), "runs": runs,
        "interrupted": runs[-1]["interrupted"],
    }  # fmt: skip
    if not result["interrupted"] and ranks.is_main:
        result |= several.finish([run["val"] for run in runs])
    return result


def default_folder(request: TrainRequest) -> Path:
    stamp = dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    method = request.config.method if request.config else "run"
    return Path("runs") / f"{Path(request.dataset).name}-{method}-{stamp}"


def new_training(
    dataset: str,
    config: Config,
    folder: Path,
    ranks: DistributedContext,
    stop: StopRequest,
    before: Path | None = None,
) -> dict[str, Any]:
    """A new run in its directory, which is removed again if it fails before its first checkpoint.

    The first process goes ahead: it may have to draw the demo.

    Args:
        before: the first run of several seeds.
    """
    from refiner_cli.cli.common import open_dataset
    from refiner_cli.training.run_dir import DatasetRef, Run
    from refiner_cli.training.setup import build_trainer, environment

    if ranks.is_main:
        benchmark = open_dataset(dataset)
        ref = DatasetRef(benchmark.name, str(benchmark.root.resolve()), benchmark.fingerprint())
        run = Run.create(folder, config, ref, environment() | {"arguments": sys.argv})
        copy_initial(run, before)
    ranks.barrier()
    run = Run.open(folder)
    try:
        trainer = build_trainer(run, open_dataset(dataset), terminal.note, ranks)
        return fit_with_progress(trainer, stop)
    except BaseException:
        if ranks.is_main:
            run.abandon()
        raise


def copy_initial(run: Run, before: Path | None) -> None:
    """Copy into a new run what the model learned that it starts from, if it starts from one."""
    from refiner_cli.cli.common import is_zero_shot
    from refiner_cli.training.run_dir import model_folder
    from refiner_cli.training.warm_start import INIT, store_initial

    init = run.config.init
    kept = before / INIT if before else None
    if not init or is_zero_shot(Path(init)):
        return
    try:
        store_initial(run.folder, kept if kept and kept.is_dir() else model_folder(Path(init)))
    except BaseException:
        run.abandon()
        raise


def resumed_trainer(dataset: str, folder: Path, ranks: DistributedContext) -> Trainer:
    """The training of an existing run, at its newest undamaged checkpoint.

    Args:
        dataset: where the dataset is now; "": where it was.
    """
    from refiner_cli.cli.common import open_dataset
    from refiner_cli.data.benchmark import load_benchmark
    from refiner_cli.training.recover import open_or_recover
    from refiner_cli.training.setup import environment, resume_trainer

    run = open_or_recover(folder, terminal.note)
    if not dataset and not Path(run.dataset.path).is_dir():
        raise DatasetError(
            f"The dataset of the run {folder} is no longer at {run.dataset.path}.",
            hint=f"Name its new place: refiner train DATASET --resume --out {folder}.",
        )
    found = open_dataset(dataset).root if dataset else Path(run.dataset.path)
    trainer = resume_trainer(run, load_benchmark(found, run.dataset.name), terminal.note, ranks)
    if ranks.is_main and trainer.step < trainer.total:
        run.note_environment(environment() | {"arguments": sys.argv}, trainer.step)
    ranks.barrier()
    return trainer


def fit_with_progress(trainer: Trainer, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Run to the end and show what happens."""
    from refiner_cli.training.events import StepDone, Stopped
    from refiner_cli.training.warm_start import read_taken

    stopped = False
    with terminal.progress("training") as progress:
        for event in trainer.fit(stop):
            show_event(event)
            stopped = stopped or isinstance(event, Stopped)
            if isinstance(event, StepDone):
                progress(event.step, event.total)
    best = trainer.run.read_best() or {}
    taken = read_taken(trainer.run.folder)
    return {"run": str(trainer.run.folder), "seed": trainer.run.config.seed, "step": trainer.step,
            "best_step": best.get("step"), "criterion": best.get("criterion"), "val": best.get("val"),
            "interrupted": stopped, **({"init": taken} if taken else {})}  # fmt: skip


def show_event(event: Event) -> None:
    from refiner_cli.training.events import Stopped, Validated
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
        if event.step == 0 and event.criterion != "AUC":
            missing = "seen" if event.metrics.n_unseen else "unseen"
            terminal.note(
                f"Validation has no {missing} pair, so AUC is undefined: the best checkpoint is selected by "
                f"{MEANING[event.criterion]}."
            )
        if event.waiting > DATA_BOUND:
            terminal.note("Decoding limits the speed: try more processes, --set train.num_workers=N.")
    elif isinstance(event, Stopped):
        terminal.note(f"stopped after step {event.step}; the state is saved, resume with --resume")
    elif event.skipped:
        terminal.note(f"step {event.step} skipped: {event.skipped}")


def show_training(result: dict[str, Any]) -> None:
    """The result as a table, and where it lies."""
    if "runs" not in result:
        if result["val"]:
            table = new_table(f"Best on validation, by {result['criterion']}", "step", *HEADLINE_METRICS)
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
            table.add_row(name, "", *(format_metric(result[name][metric]) for metric in HEADLINE_METRICS))
    terminal.table(table)
    terminal.data(f"runs {result['folder']}")
