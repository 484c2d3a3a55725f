"""The work of ``refiner train``: one run or several seeds, new or resumed, alone or under torchrun."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from refiner_cli.cli.console import PARTLY_DONE, terminal
from refiner_cli.cli.signals import StopRequest, stop_on_signal
from refiner_cli.cli.train_request import TrainRequest
from refiner_cli.cli.training_data import open_run_data, open_training_data
from refiner_cli.cli.training_view import fit_with_progress, show_training
from refiner_cli.errors import ModelFileError, RefinerError, UnreadableImageError, UsageError

if TYPE_CHECKING:
    from refiner_cli.config import Config
    from refiner_cli.core.runtime.distributed import DistributedContext
    from refiner_cli.data.benchmark import Benchmark
    from refiner_cli.training.seeds import SeedRuns
    from refiner_cli.training.trainer import Trainer

MAX_SEED = 2**63 - 1


def run_training(request: TrainRequest, *, as_json: bool) -> int:
    """Train, print the result, return the exit code."""
    from refiner_cli.core.runtime.distributed import process_group

    with (
        stop_on_signal(terminal.note) as stop,
        process_group(os.environ, gpu=on_gpu(request), lost=stop_after_lost_rank) as ranks,
    ):
        result = train_all(request, ranks, stop)
        if ranks.is_main:
            (terminal.json if as_json else show_training)(result)
        if result["interrupted"]:
            return stop.exit_code
        return PARTLY_DONE if any(run.get("skipped_images") for run in result.get("runs", [result])) else 0


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
    """The run, or one after the other those of several seeds; a start that fails leaves no folder behind."""
    out = request.out or Path(ranks.broadcast(str(default_folder(request))))
    absent = [folder for folder in out.parents if not folder.exists()]
    try:
        return train_in(request, out, ranks, stop)
    except BaseException:
        for folder in absent if ranks.is_main else ():  # inner ones first; one that is not empty stays
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def train_in(
    request: TrainRequest, out: Path, ranks: DistributedContext, stop: StopRequest
) -> dict[str, Any]:
    """The same, in a folder that is known."""
    from refiner_cli.training.seeds import SEEDS_FILE

    if (request.config and request.seeds > 1) or (request.config is None and (out / SEEDS_FILE).is_file()):
        return train_seeds(request, out, ranks, stop)
    if request.config is None:
        if request.seeds > 1:
            raise UsageError(f"{out} is not a folder of several seeds.", hint="Leave --seeds out.")
        result = fit_with_progress(resumed_trainer(request, out, ranks), stop)
    else:
        result = new_training(request, request.config, out, ranks, stop)
    return {"schema": "refiner.train/1", **result}


def train_seeds(
    request: TrainRequest, out: Path, ranks: DistributedContext, stop: StopRequest
) -> dict[str, Any]:
    """One run per seed; those that exist already are resumed."""
    from refiner_cli.training.run_dir import Run, is_run
    from refiner_cli.training.seeds import SeedRuns

    config = request.config
    if config is not None:
        if config.seed + request.seeds - 1 > MAX_SEED:
            raise UsageError(f"--seeds {request.seeds} from seed {config.seed} on exceed {MAX_SEED}.")
        if ranks.is_main:
            SeedRuns.create(out, range(config.seed, config.seed + request.seeds))
        ranks.barrier()
    several = SeedRuns.open(out)
    if config is None:
        request = resume_seeds(request, several)
    runs: list[dict[str, Any]] = []
    for seed in several.seeds:
        folder = several.run(seed)
        terminal.note(f"seed {seed}, {len(runs) + 1} of {len(several.seeds)}")
        # The main process decides: when another one looks, it may have made the run already.
        if ranks.broadcast("begun" if is_run(folder) else ""):
            runs.append(fit_with_progress(resumed_trainer(request, folder, ranks), stop))
        else:
            before = several.first_begun()
            if config is None:
                assert before is not None  # noqa: S101 - resume_seeds() says so
                first = Run.open(before)
                config = first.config
                request = replace(
                    request,
                    dataset=request.dataset or first.dataset.path,
                    skip_unreadable=request.skip_unreadable or bool(first.skipped),
                    labels=first.folder / first.dataset.labels if first.dataset.labels else None,
                )
            try:
                seeded = config.model_copy(update={"seed": seed})
                runs.append(new_training(request, seeded, folder, ranks, stop, before))
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


def resume_seeds(request: TrainRequest, several: SeedRuns) -> TrainRequest:
    """The request as each run of the folder takes it.

    Raises:
        UsageError: other seeds are asked for.
        ModelFileError: none of the trainings has begun.
    """
    if several.first_begun() is None:
        raise ModelFileError(
            f"No training in {several.folder} has begun.",
            hint="Give the command that started it again, without --resume.",
        )
    if request.seeds not in {1, len(several.seeds)}:
        raise UsageError(
            f"--seeds {request.seeds} contradicts {several.folder}, which holds {len(several.seeds)} seeds.",
            hint="Leave --seeds out.",
        )
    if request.asked.get("seed", (None, ""))[0] != several.seeds[0]:
        return request
    return replace(request, asked={key: asked for key, asked in request.asked.items() if key != "seed"})


def default_folder(request: TrainRequest) -> Path:
    stamp = dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    method = request.config.method if request.config else "run"
    return Path("runs") / f"{Path(request.dataset).name}-{method}-{stamp}"


def new_training(
    request: TrainRequest,
    config: Config,
    folder: Path,
    ranks: DistributedContext,
    stop: StopRequest,
    before: Path | None = None,
) -> dict[str, Any]:
    """A new run in its directory, which is removed again if it fails before its first checkpoint.

    The first process goes ahead: it may have to draw the demo.

    Args:
        before: the first run of several seeds, which keeps what its training started from.
    """
    from refiner_cli.inference.encoded import EncodedBenchmark
    from refiner_cli.inference.labelled_index import LABELS, write_labels
    from refiner_cli.training.folder_lock import require_unused
    from refiner_cli.training.run_dir import DatasetRef, Run
    from refiner_cli.training.setup import build_trainer, environment

    if ranks.is_main:
        benchmark = open_training_data(request.dataset, request.labels)
        require_unused(folder)
        encoded = isinstance(benchmark, EncodedBenchmark)
        skipped = unreadable_images(benchmark) if request.skip_unreadable and not encoded else []
        root, labels = str(benchmark.root.resolve()), LABELS if encoded else ""
        ref = DatasetRef(benchmark.name, root, benchmark.fingerprint(), labels)

        def fill(place: Path) -> None:
            if isinstance(benchmark, EncodedBenchmark):
                write_labels(place / LABELS, benchmark)
            copy_initial(config.init, place, before)

        Run.create(folder, config, ref, environment() | {"arguments": sys.argv}, skipped, fill)
    ranks.barrier()
    run = Run.open(folder)
    try:
        trainer = build_trainer(run, open_run_data(run), terminal.note, ranks)
        return fit_with_progress(trainer, stop)
    except BaseException as error:
        if isinstance(error, UnreadableImageError):
            error.hint = "With --on-error skip, a new training does without such images."
        if ranks.is_main:
            run.abandon()
        raise


def copy_initial(init: str, folder: Path, before: Path | None) -> None:
    """Copy into a new run what the model learned that it starts from, if it starts from one."""
    from refiner_cli.cli.common import is_zero_shot
    from refiner_cli.training.run_dir import INIT, model_folder
    from refiner_cli.training.warm_start import store_initial

    kept = before / INIT if before else None
    if not init or is_zero_shot(Path(init)):
        return
    store_initial(folder, kept if kept and kept.is_dir() else model_folder(Path(init)))


def unreadable_images(benchmark: Benchmark) -> list[str]:
    """The training and validation images that cannot be decoded; each is named."""
    from refiner_cli.data.integrity import find_unreadable
    from refiner_cli.machine import cores

    paths = [sample.path for split in ("train", "val") for sample in benchmark.samples[split]]
    with terminal.report() as report:
        found = find_unreadable(
            benchmark.images, paths, name="images", workers=cores(), report=report, stop=Event()
        )
    for fault in found:
        terminal.note(f"skipped: {fault.path} ({fault.reason})")
    return [fault.path for fault in found]


def resumed_trainer(request: TrainRequest, folder: Path, ranks: DistributedContext) -> Trainer:
    """The training of an existing run, at its newest undamaged checkpoint."""
    from refiner_cli.training.recover import open_or_recover
    from refiner_cli.training.setup import environment, resume_trainer

    run = open_or_recover(folder, terminal.note)
    trainer = resume_trainer(run, open_run_data(run, request.dataset), terminal.note, ranks, request.asked)
    if ranks.is_main and trainer.step < trainer.total:
        run.note_environment(environment() | {"arguments": sys.argv}, trainer.step)
    ranks.barrier()
    return trainer
