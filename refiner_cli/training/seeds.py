"""Several trainings that differ in their seed alone, side by side in one folder.

::

    seeds.json     which seeds, and once all are done: mean and deviation
    seed-0/ ...    one run each
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refiner_cli.errors import ModelFileError, UsageError
from refiner_cli.files import write_json
from refiner_cli.metric_names import HEADLINE_METRICS

FORMAT, FILE = "refiner.seeds/1", "seeds.json"


@dataclass(frozen=True)
class SeedRuns:
    """The folder of several runs."""

    folder: Path
    seeds: tuple[int, ...]

    @classmethod
    def create(cls, folder: Path, seeds: Sequence[int]) -> SeedRuns:
        """Raises UsageError if something lies there already."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                f"The folder {folder} exists already.",
                hint="Use another --out, or --resume to go on with it.",
            )
        made = cls(folder, tuple(seeds))
        made._write({})
        return made

    @classmethod
    def open(cls, folder: Path) -> SeedRuns:
        """Raises ModelFileError if the folder's file is damaged."""
        file = folder / FILE
        try:
            content = json.loads(file.read_text("utf-8"))
            return cls(folder, tuple(int(seed) for seed in content["seeds"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelFileError(f"The file {file} is damaged ({error!r}).") from None

    def run(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}"

    def finish(self, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Mean and sample standard deviation of the best validation metrics; kept in the file, too."""
        summary = mean_and_deviation(found)
        self._write(summary)
        return summary

    def _write(self, summary: dict[str, Any]) -> None:
        write_json(self.folder / FILE, {"format": FORMAT, "seeds": list(self.seeds), **summary})


def mean_and_deviation(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """``mean`` and ``deviation`` by metric; the deviation divides by n - 1, and of one run it is 0.

    None where the metric is undefined, which depends on the validation images alone.
    """
    columns = {name: [metrics[name] for metrics in found] for name in HEADLINE_METRICS}
    defined = {name: [float(v) for v in values] for name, values in columns.items() if None not in values}
    means = {name: statistics.fmean(values) for name, values in defined.items()}
    deviations = {
        name: statistics.stdev(values) if len(values) > 1 else 0.0 for name, values in defined.items()
    }
    return {
        "mean": {name: means.get(name) for name in HEADLINE_METRICS},
        "deviation": {name: deviations.get(name) for name in HEADLINE_METRICS},
    }
