"""The runs below a folder, and what each of them is: ``refiner runs``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from refiner_cli.core.model_io.zero_shot import backbone_text
from refiner_cli.errors import RefinerError
from refiner_cli.training.calibration_stage import record_of_best
from refiner_cli.training.folder_lock import LOCK
from refiner_cli.training.run_dir import METRICS, Run, is_run
from refiner_cli.training.run_files import read_best

FINISHED, NOT_BEGUN, TRAINING = "finished", "not begun", "training"  # states of a run
DEPTH = 4  # folders below the given one
TAIL = 1 << 16  # bytes of metrics.jsonl that hold its last line


@dataclass(frozen=True)
class RunSummary:
    """One run as a list shows it."""

    folder: str
    state: str  # finished, training, interrupted, not calibrated, not begun, or damaged and why
    method: str = ""
    backbone: str = ""
    dataset: str = ""
    seed: int | None = None
    step: int = 0
    best_step: int | None = None
    val: dict[str, Any] | None = None  # of the best checkpoint

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def find_runs(root: Path) -> Iterator[RunSummary]:
    """Every run in a folder and below, by path; runs themselves are not searched."""
    if is_run(root):
        yield summarise_run(root)
        return
    for folder, folders, _ in os.walk(root):
        place = Path(folder)
        deep = len(place.relative_to(root).parts) >= DEPTH
        inner = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [] if deep else [name for name in inner if not is_run(place / name)]
        for name in inner:
            if is_run(place / name):
                yield summarise_run(place / name)


def summarise_run(folder: Path) -> RunSummary:
    """What a run's files say."""
    try:
        run, best = Run.open(folder), read_best(folder)
        calibrated = record_of_best(run) is not None  # the last that a training does
    except RefinerError as error:
        return RunSummary(str(folder), f"damaged ({error.message})")
    last = last_row(folder / METRICS)
    step = last.get("step", 0)
    if last.get("kind") == "val" and last.get("total") == step:
        state = FINISHED if calibrated else "not calibrated"
    else:
        state = "interrupted" if last else NOT_BEGUN
    config = run.config
    return RunSummary(
        str(folder),
        TRAINING if is_held(folder) else state,
        config.method,
        backbone_text(config.backbone, config.pretrained),
        run.dataset.name,
        config.seed,
        step,
        best["step"] if best else None,
        best["val"] if best else None,
    )


def last_row(file: Path) -> dict[str, Any]:
    """The last complete line of a file of JSON lines; empty if there is none."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - TAIL))
            lines = stream.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            return row
    return {}


def is_held(folder: Path) -> bool:
    """Whether a process is training there. Creates nothing."""
    if not (folder / LOCK).is_file():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (NotImplementedError, OSError):
        return False
    lock.release()
    return False
