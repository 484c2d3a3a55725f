"""A run directory: everything one training leaves behind.

::

    run.json                     the resolved configuration and the dataset
    environment.json             versions, device, command line, fingerprint of the data
    environment-00000120.json    the same where the run went on after that step
    metrics.jsonl                one line a step and one an epoch
    curves.html                  the same as pictures
    checkpoints/step-00000120/   a model directory and the training state, whole or not there
    best.json                    which checkpoint did best on validation
    feasibility.json             what ``refiner eval --feasibility`` chose, also on validation

The last two checkpoints are kept, and the best one. One training at a time writes into a run.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from refiner_cli.config import Config
from refiner_cli.errors import ConfigError, ModelFileError, UsageError
from refiner_cli.files import atomic_file, atomic_folder, write_json

FORMAT = "refiner.run/2"
RUN = "run.json"
BEST = "best.json"
METRICS = "metrics.jsonl"
KEPT = 2


@dataclass(frozen=True)
class DatasetRef:
    """Which data a run was trained on."""

    name: str
    path: str
    fingerprint: str


@dataclass(frozen=True)
class Run:
    """An existing run directory."""

    folder: Path
    config: Config
    dataset: DatasetRef

    @classmethod
    def create(cls, folder: Path, config: Config, dataset: DatasetRef, environment: dict[str, Any]) -> Run:
        """Start a run. Raises UsageError if something lies there already."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                f"The run directory {folder} exists already.",
                hint="Use another --out, or --resume to go on with it.",
            )
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder, config, dataset)
        run.note_environment(environment)
        write_json(
            folder / RUN, {"format": FORMAT, "config": config.model_dump(), "dataset": dataset.__dict__}
        )
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open a run. Raises ModelFileError if it is none or damaged."""
        file = folder / RUN
        try:
            content = json.loads(file.read_text("utf-8"))
            if content["format"] != FORMAT:
                raise ModelFileError(
                    f"{file} has the format {content['format']!r}; this version reads {FORMAT!r}."
                )
            return cls(folder, Config.model_validate(content["config"]), DatasetRef(**content["dataset"]))
        except FileNotFoundError:
            raise ModelFileError(f"{folder} is no run: the file {RUN} is missing.") from None
        except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
            raise ModelFileError(f"The run file {file} is damaged ({error!r}).") from None

    def note_environment(self, environment: dict[str, Any], step: int | None = None) -> None:
        """Keep what the run began with, or what it went on with after a step."""
        name = "environment.json" if step is None else f"environment-{step:08d}.json"
        write_json(self.folder / name, environment | {"data": self.dataset.fingerprint})

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with (self.folder / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl; a torn last one is left out."""
        file = self.folder / METRICS
        for line in file.read_text("utf-8").splitlines() if file.exists() else []:
            try:
                yield json.loads(line)
            except ValueError:
                return

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for one training. Raises UsageError while another one holds it."""
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(f"Another process is training in {self.folder}.", hint="Wait for it.") from None
        try:
            yield
        finally:
            lock.release()

    def discard_after(self, step: int, *, validated: bool) -> None:
        """Drop what an interrupted training left behind: lines that will be written again, torn files."""
        kept = [
            row
            for row in self.metrics()
            if row["step"] < step or (row["step"] == step and (validated or row["kind"] != "val"))
        ]
        for part in (*self.folder.glob(f".{METRICS}.*"), *self.folder.glob(f".{BEST}.*")):
            part.unlink()
        for part in (self.folder / "checkpoints").glob(".step-*"):
            shutil.rmtree(part)
        with atomic_file(self.folder / METRICS) as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step:08d}"

    def checkpoints(self) -> list[Path]:
        """All whole checkpoints, oldest first."""
        return sorted((self.folder / "checkpoints").glob("step-*"))

    @contextlib.contextmanager
    def new_checkpoint(self, step: int) -> Iterator[Path]:
        """The folder to fill. One of the same step, saved before its validation, gives way to it."""
        with atomic_folder(self.checkpoint(step)) as part:
            yield part
            shutil.rmtree(self.checkpoint(step), ignore_errors=True)

    def write_best(self, best: dict[str, Any]) -> None:
        """Write best.json: the name of a checkpoint, its step, and what validation said of it."""
        write_json(self.folder / BEST, best)

    def read_best(self) -> dict[str, Any] | None:
        """What best.json says, or None before the first validation."""
        try:
            found: dict[str, Any] = json.loads((self.folder / BEST).read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ModelFileError(f"The file {self.folder / BEST} is damaged ({error}).") from None
        return found

    def resume_point(self) -> str:
        """What an interrupted training can go on from, as a sentence."""
        saved = self.checkpoints()
        return f"The last whole one is {saved[-1].name}." if saved else "There is none yet."

    def prune(self) -> None:
        """Remove checkpoints that are neither the best nor among the last two."""
        best = self.read_best()
        for folder in self.checkpoints()[:-KEPT]:
            if best is None or folder.name != best["checkpoint"]:
                shutil.rmtree(folder)


def is_run(path: Path) -> bool:
    """Whether a run lies there, rather than an exported model."""
    return (path / RUN).is_file()


def model_folder(path: Path) -> Path:
    """The model directory that a user means: a model directory itself, or the best one of a run.

    Raises ModelFileError where there is neither.
    """
    if is_run(path):
        run = Run.open(path)
        best = run.read_best()
        if best is None:
            raise ModelFileError(
                f"The run {path} has no validated checkpoint yet.", hint="Go on with --resume."
            )
        folder = path / "checkpoints" / best["checkpoint"]
        if not folder.is_dir():
            raise ModelFileError(
                f"The run {path} names {best['checkpoint']} as its best and does not hold it."
            )
        return folder
    if not path.is_dir():
        raise ModelFileError(
            f"There is no model at {path}.", hint="Give a run directory or an exported model directory."
        )
    return path
