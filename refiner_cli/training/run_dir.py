"""A run directory: everything one training leaves behind.

::

    run.json                     the resolved configuration and the dataset
    environment.json             versions, device, command line, fingerprint of the data
    environment-00000120.json    the same where the run was resumed after that step
    init/                        the learned part of the model that the run started from (``--init``)
    metrics.jsonl                one line per step and one per validation
    curves.html                  the same as charts
    checkpoints/step-00000120/   a model directory and the training state, complete or absent
    best.json                    which checkpoint did best on validation, and by which criterion
    calibration.json             how it was calibrated after training, on validation
    folds/1/                     a run on a part of the images, where calibration was cross-validated instead
    feasibility.json             what ``refiner eval --feasibility`` selected, also on validation

One training at a time writes into a run.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from refiner_cli.config import Config
from refiner_cli.core.model_io.hub import hub_model
from refiner_cli.core.towers.architectures import HF_HUB, similar_backbones
from refiner_cli.data.benchmark import SPLIT_FOLDER
from refiner_cli.errors import ConfigError, ModelFileError, UsageError
from refiner_cli.evaluation.feasibility.fit import FIT_FILE
from refiner_cli.files import atomic_file, write_json
from refiner_cli.inference.labelled_index import LABELS
from refiner_cli.printable import quoted
from refiner_cli.training.checkpoints import Checkpoints, step_of
from refiner_cli.training.folder_lock import LOCK, folder_lock, new_folder, remove_temporary
from refiner_cli.training.run_files import BEST, RUN, RUN_FORMAT, DamagedRunError, read_best, read_run_file

CALIBRATION = "calibration.json"
METRICS = "metrics.jsonl"
ENVIRONMENT = "environment.json"
INIT = "init"  # see training/warm_start.py
TOKENS = "tokens"  # the token cache, see training/token_cache.py


@dataclass(frozen=True)
class DatasetRef:
    """Which data a run was trained on."""

    name: str
    path: str
    fingerprint: str
    labels: str = ""  # where the data are an index: the table of labels and splits, in the run


@dataclass(frozen=True)
class Run:
    """An existing run directory."""

    folder: Path
    config: Config
    dataset: DatasetRef
    skipped: tuple[str, ...] = ()  # unreadable images that it was asked to do without
    changes: tuple[dict[str, Any], ...] = ()  # made when it was resumed, see training/changes.py

    @classmethod
    def create(
        cls,
        folder: Path,
        config: Config,
        dataset: DatasetRef,
        environment: dict[str, Any],
        skipped: Sequence[str] = (),
        fill: Callable[[Path], None] = lambda _: None,
    ) -> Run:
        """Start a run.

        Args:
            fill: puts into the folder what the training starts from. The run is there once that is complete.

        Raises:
            UsageError: something lies there already, or another process is starting.
        """
        run, claimed = cls(folder, config, dataset, tuple(skipped)), False
        try:
            with new_folder(folder):
                claimed = True
                run.remove_start()
                run.note_environment(environment)
                fill(folder)
                run.write()
        except BaseException:
            if claimed:
                run.abandon()
            raise
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open a run. Raises ModelFileError if it is not one, or is damaged or of another version."""
        return cls.parse(folder, read_run_file(folder), folder / RUN)

    @classmethod
    def parse(cls, folder: Path, content: dict[str, Any], source: Path) -> Run:
        """What :meth:`to_json` gave, read from a file ``source``. Raises ModelFileError if it is damaged."""
        try:
            dataset = TypeAdapter(DatasetRef).validate_python(content["dataset"])
            skipped = TypeAdapter(tuple[str, ...]).validate_python(content.get("skipped", []))
            changes = TypeAdapter(tuple[dict[str, Any], ...]).validate_python(content.get("changes", []))
            return cls(folder, Config.model_validate(content["config"]), dataset, skipped, changes)
        except ValidationError as error:
            first = error.errors()[0]
            if first["loc"] == ("method",):
                raise ModelFileError(
                    f"The method {first['input']!r} of the run {folder} is unknown.",
                    hint="Install the package that adds it.",
                ) from None
            raise DamagedRunError(f"The run file {source} is damaged ({first['msg']}).") from None
        except (KeyError, TypeError, ConfigError) as error:
            raise DamagedRunError(f"The run file {source} is damaged ({error!r}).") from None

    def to_json(self) -> dict[str, Any]:
        """All that it is besides its folder: the content of run.json, which every checkpoint repeats."""
        return {
            "format": RUN_FORMAT,
            "config": self.config.model_dump(mode="json"),
            "dataset": asdict(self.dataset),
            "skipped": list(self.skipped),
            "changes": list(self.changes),
        }

    def write(self) -> None:
        """Write run.json."""
        write_json(self.folder / RUN, self.to_json())

    def abandon(self) -> None:
        """Remove a run that never began, so that the next start finds the folder free."""
        with contextlib.suppress(OSError, UsageError):
            with self.locked():
                if self.checkpoints():
                    return
                self.clean()
                self.remove_start()
                for name in (RUN, ENVIRONMENT, METRICS, BEST):
                    (self.folder / name).unlink(missing_ok=True)
            (self.folder / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.stored.folder.rmdir()
            self.folder.rmdir()

    def remove_start(self) -> None:
        """Remove what a training starts from: that of a start that failed is not another one's."""
        shutil.rmtree(self.folder / INIT, ignore_errors=True)
        (self.folder / LABELS).unlink(missing_ok=True)

    def note_environment(self, environment: dict[str, Any], step: int | None = None) -> None:
        """Keep the environment that the run was started in, or resumed in after a step."""
        name = ENVIRONMENT if step is None else f"environment-{step:08d}.json"
        write_json(self.folder / name, environment | {"data": self.dataset.fingerprint})

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with (self.folder / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl; damaged ones, and a torn last one, are left out."""
        file = self.folder / METRICS
        for line in file.read_bytes().splitlines() if file.is_file() else []:
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int) and "kind" in row:
                    yield row

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the run for one training. Raises UsageError while another one holds it."""
        return folder_lock(self.folder)

    def discard_after(self, step: int, *, validated: bool) -> None:
        """Drop what an interrupted training left behind: what will be written again, and torn files."""
        self.clean()
        kept = [
            row
            for row in self.metrics()
            if row["step"] < step or (row["step"] == step and (validated or row["kind"] != "val"))
        ]
        with atomic_file(self.folder / METRICS) as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
        self.stored.discard_after(step)

    def forget_calibration(self) -> None:
        """Remove the record of a calibration, and of what was chosen with it: another one follows."""
        for name in (CALIBRATION, FIT_FILE):
            (self.folder / name).unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove what killed processes left while writing. Call it while holding the run."""
        remove_temporary(self.folder)
        self.stored.clean()

    @property
    def stored(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints")

    def checkpoint(self, step: int) -> Path:
        return self.stored.path(step)

    def checkpoints(self) -> list[Path]:
        """All checkpoints, oldest first; none of them was checked."""
        return self.stored.all()

    def newest_step(self) -> int:
        """The step of the newest checkpoint, 0 if there is none."""
        saved = self.checkpoints()
        return step_of(saved[-1]) if saved else 0

    def write_best(self, best: dict[str, Any] | None) -> None:
        """Write best.json, as ``selection.best_record`` gives it; None: no validation yet, no file."""
        if best is None:
            (self.folder / BEST).unlink(missing_ok=True)
        else:
            write_json(self.folder / BEST, best)

    def read_best(self) -> dict[str, Any] | None:
        """What best.json says, or None before the first validation."""
        return read_best(self.folder)

    def resume_point(self) -> str:
        """What an interrupted training can be resumed from, as a sentence."""
        saved = self.checkpoints()
        return f"The last complete one is {saved[-1].name}." if saved else "There is none yet."


def is_run(path: Path) -> bool:
    """Whether a run lies there, rather than an exported model."""
    return (path / RUN).is_file()


def model_folder(path: Path) -> Path:
    """The model directory that a user means: a model directory itself, the best one of a run, or the Hub's.

    Raises:
        ModelFileError: there is none of them, or the best checkpoint is missing or damaged.
        FetchError: ``hf-hub:OWNER/NAME`` cannot be downloaded.
    """
    if str(path).startswith(HF_HUB) and not path.exists():
        found = hub_model(path.as_posix())
        if found is None:
            raise ModelFileError(f"{path} is not a model of refiner.")
        return found
    if is_run(path):
        read_run_file(path)
        best = read_best(path)
        if best is None:
            raise ModelFileError(f"The run {path} has no validated checkpoint yet.", hint="Use --resume.")
        stored = Checkpoints(path / "checkpoints")
        stored.require_intact(best["checkpoint"])
        return stored.folder / best["checkpoint"]
    if path.is_file():
        raise ModelFileError(
            f"{path} is a file, and a model is a folder.", hint="Give a run directory or an exported model."
        )
    if not path.is_dir():
        close = similar_backbones(path.as_posix())
        hint = "Give a run directory or an exported model directory."
        raise ModelFileError(
            f"There is no model at {path}, nor a backbone of that name.",
            hint=f"Did you mean {' or '.join(close)}?" if close else hint,
        )
    if (path / SPLIT_FOLDER).is_dir():
        raise ModelFileError(
            f"{path} is a dataset, not a model.", hint=f"Train on it: {'refiner train ' + quoted(path)}"
        )
    return path
