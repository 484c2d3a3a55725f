"""Several evaluations side by side: paired differences, and the spread over seeds.

The draws of the bootstrap are the same images for both sides of a difference, so what all runs find
hard cancels out, and a small but steady gain is told from luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from refiner_cli.config import Config
from refiner_cli.errors import UsageError
from refiner_cli.evaluation.metrics.bootstrap import METRIC_NAMES, Difference, differences
from refiner_cli.evaluation.result import Result

MACHINE_KEYS = {"seed", "device", "precision"}  # what may differ between runs of one setting


@dataclass(frozen=True)
class EvaluatedRun:
    """One run: its name, its configuration (None for an exported model), and what was found."""

    name: str
    config: Config | None
    result: Result

    def setting(self) -> dict[str, Any] | None:
        """Everything that is configured but the seed and the machine."""
        return None if self.config is None else self.config.model_dump(exclude=MACHINE_KEYS)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of every metric over runs that differ only in seed."""

    runs: tuple[str, ...]
    worlds: dict[str, dict[str, tuple[float, float]]]  # world -> metric -> (mean, sd)


@dataclass(frozen=True)
class Comparison:
    """All sides, each later one minus the first, and the groups of seeds."""

    sides: tuple[EvaluatedRun, ...]
    against_first: dict[str, dict[str, dict[str, Difference]]]  # run -> world -> metric -> difference
    spreads: tuple[Spread, ...]

    def to_json(self) -> dict[str, Any]:
        first = self.sides[0].result.to_json()
        return {
            **{key: first[key] for key in ("dataset", "split", "protocol", "bootstrap")},
            "schema": "refiner.compare/1",
            "runs": [{"run": side.name, "worlds": _numbers(side.result)} for side in self.sides],
            "differences": [
                {
                    "run": run,
                    "minus": self.sides[0].name,
                    "worlds": {
                        world: {name: found.to_json() for name, found in metrics.items()}
                        for world, metrics in worlds.items()
                    },
                }
                for run, worlds in self.against_first.items()
            ],
            "seeds": [
                {
                    "runs": list(spread.runs),
                    "worlds": {
                        world: {name: {"mean": m, "sd": sd} for name, (m, sd) in metrics.items()}
                        for world, metrics in spread.worlds.items()
                    },
                }
                for spread in self.spreads
            ],
        }


def compare(sides: Sequence[EvaluatedRun]) -> Comparison:
    """Compare runs that were evaluated on the same images in the same way.

    Raises:
        UsageError: fewer than two runs, or one given twice.
        ScoresError: two of them saw other images.
    """
    names = [side.name for side in sides]
    if len(names) < 2 or len(set(names)) != len(names):
        raise UsageError("At least two different runs are needed for a comparison.")
    first = sides[0].result
    against_first = {
        side.name: {
            world: differences(
                first.worlds[world].measured, found.measured, first.protocol, draws=first.bootstrap_samples,
                seed=first.seed,
            )
            for world, found in side.result.worlds.items()
        }
        for side in sides[1:]
    }  # fmt: skip
    return Comparison(tuple(sides), against_first, tuple(_spreads(sides)))


def _spreads(sides: Sequence[EvaluatedRun]) -> list[Spread]:
    groups: list[list[EvaluatedRun]] = []
    for side in sides:
        setting = side.setting()
        same = next((group for group in groups if setting and group[0].setting() == setting), None)
        groups.append([side]) if same is None else same.append(side)
    return [
        Spread(tuple(side.name for side in group), _mean_and_sd(group)) for group in groups if len(group) > 1
    ]


def _mean_and_sd(group: Sequence[EvaluatedRun]) -> dict[str, dict[str, tuple[float, float]]]:
    found = {}
    for world in group[0].result.worlds:
        metrics = [side.result.worlds[world].metrics for side in group]
        values = {name: [float(getattr(m, name)) for m in metrics] for name in METRIC_NAMES}
        found[world] = {name: (mean(numbers), stdev(numbers)) for name, numbers in values.items()}
    return found


def _numbers(result: Result) -> dict[str, Any]:
    return {
        name: world.metrics.to_json() | {"intervals": {n: i.to_json() for n, i in world.intervals.items()}}
        for name, world in result.worlds.items()
    }
