"""Several trainings that differ in their seed alone, side by side in one folder.

::

    seeds.json     which seeds, and once all are done: mean and deviation
    seed-0/ ...    one run each
"""

from __future__ import annotations

import contextlib
import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from refiner_cli.errors import ModelFileError
from refiner_cli.files import write_json
from refiner_cli.metric_names import HEADLINE_METRICS
from refiner_cli.printable import quoted
from refiner_cli.training.folder_lock import LOCK, is_remains, new_folder
from refiner_cli.training.run_dir import is_run
from refiner_cli.training.run_files import read_best
from refiner_cli.training.run_list import FINISHED, NOT_BEGUN, summarise_run
from refiner_cli.training.selection import is_better

SEEDS_FORMAT, SEEDS_FILE = "refiner.seeds/1", "seeds.json"
SEED_FOLDER = re.compile(r"seed-\d+")


@dataclass(frozen=True)
class SeedRuns:
    """The folder of several runs."""

    folder: Path
    seeds: tuple[int, ...]

    @classmethod
    def create(cls, folder: Path, seeds: Sequence[int]) -> SeedRuns:
        """Raises UsageError if something lies there already or another process is starting."""
        made = cls(folder, tuple(seeds))
        with new_folder(folder, is_remains_of_seeds):
            made._write({})
        return made

    @classmethod
    def open(cls, folder: Path) -> SeedRuns:
        """Raises ModelFileError if the folder's file is damaged."""
        file = folder / SEEDS_FILE
        try:
            content = json.loads(file.read_bytes())
            if content["format"] != SEEDS_FORMAT:
                raise ModelFileError(
                    f"{file} has the format {content['format']!r}; this version reads {SEEDS_FORMAT!r}."
                )
            return cls(folder, tuple(int(seed) for seed in content["seeds"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelFileError(f"The file {file} is damaged ({error!r}).") from None

    def run(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}"

    def trained(self) -> dict[int, Path]:
        """The runs whose training and calibration are finished, by seed.

        A mean over others would be one of models of different stages. Raises ModelFileError if none is.
        """
        found = {seed: self.run(seed) for seed, state in self.states.items() if state == FINISHED}
        if not found:
            raise ModelFileError(
                f"No training in {self.folder} is finished yet.",
                hint=f"Finish them: refiner train --resume --out {quoted(self.folder)}",
            )
        return found

    @cached_property
    def states(self) -> dict[int, str]:
        """What every run is, by seed, as ``RunSummary.state`` says it; read once: all counts agree."""
        runs = {seed: self.run(seed) for seed in self.seeds}
        return {seed: summarise_run(run).state if is_run(run) else NOT_BEGUN for seed, run in runs.items()}

    def first_begun(self) -> Path | None:
        """The first run there is, of which the others have the settings; None: there is none yet."""
        return next((run for run in map(self.run, self.seeds) if is_run(run)), None)

    def unfinished(self) -> dict[int, str]:
        """The states of those that are not finished."""
        return {seed: state for seed, state in self.states.items() if state != FINISHED}

    def best(self) -> int:
        """The finished seed that did best on validation. Raises ModelFileError if none is finished."""
        chosen, record = -1, None
        for seed, run in self.trained().items():
            found = read_best(run)
            if found and (record is None or not is_better(record, found)):
                chosen, record = seed, found
        return chosen

    def abandon(self) -> None:
        """Remove the folder if no training in it began, so that the next start finds it free."""
        if not any(self.run(seed).exists() for seed in self.seeds):
            with contextlib.suppress(OSError):
                for name in (SEEDS_FILE, LOCK):
                    (self.folder / name).unlink(missing_ok=True)
                self.folder.rmdir()

    def finish(self, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Mean and sample standard deviation of the best validation metrics; kept in the file, too."""
        summary = mean_and_deviation(found)
        self._write(summary)
        return summary

    def _write(self, summary: dict[str, Any]) -> None:
        write_json(self.folder / SEEDS_FILE, {"format": SEEDS_FORMAT, "seeds": list(self.seeds), **summary})


def is_remains_of_seeds(path: Path) -> bool:
    """Whether a file is what a start of several seeds may leave that ended before its first run began."""
    if SEED_FOLDER.fullmatch(path.name):
        return path.is_dir() and all(map(is_remains, path.iterdir()))
    if path.name == SEEDS_FILE:
        with contextlib.suppress(ModelFileError):
            SeedRuns.open(path.parent)
            return True
        return False
    return is_remains(path)


def is_seeds(path: Path) -> bool:
    """Whether a folder of several seeds lies there."""
    return (path / SEEDS_FILE).is_file()


def mean_and_deviation(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """``mean`` and ``deviation`` by metric, None where the metric is undefined.

    The deviation divides by n - 1; one run has none.
    """
    mean: dict[str, float | None] = {}
    deviation: dict[str, float | None] = {}
    for name in HEADLINE_METRICS:
        values = [float(val[name]) for val in found if val[name] is not None]
        mean[name] = statistics.fmean(values) if values else None
        deviation[name] = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": mean, "deviation": deviation}
