"""Several evaluations side by side: paired differences, and mean and deviation over seeds.

Both sides of a difference are resampled alike, so images that are hard for every run cancel out, and a
small but consistent gain can be told from chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np

from refiner_cli.config import Config
from refiner_cli.errors import UsageError
from refiner_cli.evaluation.metrics.bootstrap import Difference, differences, interval_json
from refiner_cli.evaluation.result import Result
from refiner_cli.metric_names import METRIC_NAMES

VARYING_KEYS = {"seed", "device", "precision"}  # may differ between repetitions of one configuration


@dataclass(frozen=True)
class EvaluatedRun:
    """One run: its name, its configuration (None without a run directory), its result, and what it is.

    ``data`` says what it was trained on: the fingerprint of the dataset, then images that were left out.
    """

    name: str
    config: Config | None
    result: Result
    method: str = ""
    backbone: str = ""
    data: tuple[str, ...] = ()

    def repeated_config(self) -> dict[str, Any] | None:
        """The configuration without the seed and the machine."""
        return None if self.config is None else self.config.model_dump(exclude=VARYING_KEYS)


@dataclass(frozen=True)
class SeedSummary:
    """Mean and sample standard deviation of every metric over runs that differ only in seed."""

    runs: tuple[str, ...]
    worlds: dict[str, dict[str, tuple[float, float] | None]]  # world -> metric -> (mean, sd), or undefined


@dataclass(frozen=True)
class Comparison:
    """All sides, each later one minus the first, and the groups of seeds."""

    sides: tuple[EvaluatedRun, ...]
    against_first: dict[str, dict[str, dict[str, Difference]]]  # run -> world -> metric -> difference
    seeds: tuple[SeedSummary, ...]
    notes: tuple[str, ...]  # what makes sides hard to compare, a sentence each

    def to_json(self) -> dict[str, Any]:
        first = self.sides[0].result.to_json()
        return {
            **{key: first[key] for key in ("dataset", "split", "protocol", "bootstrap")},
            "schema": "refiner.compare/1",
            "runs": [
                {
                    "run": side.name,
                    "method": side.method,
                    "backbone": side.backbone,
                    "worlds": _worlds_json(side.result),
                }
                for side in self.sides
            ],
            "differences": [
                {
                    "run": run,
                    "minus": self.sides[0].name,
                    "worlds": {
                        world: {name: difference.to_json() for name, difference in metrics.items()}
                        for world, metrics in worlds.items()
                    },
                }
                for run, worlds in self.against_first.items()
            ],
            "seeds": [
                {
                    "runs": list(group.runs),
                    "worlds": {
                        world: {name: spread_json(values) for name, values in metrics.items()}
                        for world, metrics in group.worlds.items()
                    },
                }
                for group in self.seeds
            ],
            "notes": list(self.notes),
        }


def compare_runs(sides: Sequence[EvaluatedRun]) -> Comparison:
    """Compare runs that were evaluated on the same images in the same way.

    Raises:
        UsageError: fewer than two runs, or one given twice.
        ScoresError: two of them were evaluated on different images.
    """
    names = [side.name for side in sides]
    if len(names) < 2 or len(set(names)) != len(names):
        raise UsageError("At least two different runs are needed for a comparison.")
    first = sides[0].result
    against_first = {
        side.name: {
            world: differences(
                first.worlds[world].measured, other.measured, first.protocol,
                bootstrap_samples=first.bootstrap_samples, seed=first.seed,
            )
            for world, other in side.result.worlds.items()
        }
        for side in sides[1:]
    }  # fmt: skip
    return Comparison(
        tuple(sides), against_first, tuple(_seed_summaries(sides)), tuple(comparability_notes(sides))
    )


def comparability_notes(sides: Sequence[EvaluatedRun]) -> Iterator[str]:
    """A sentence for every side that was measured among other pairs than the first, or counts others as seen.

    Score files may hold any world, and say themselves what training saw.
    """
    first, *others = sides
    for side in others:
        for world, result in side.result.worlds.items():
            ours, theirs = first.result.worlds[world].measured, result.measured
            if ours.candidates != theirs.candidates:
                yield (
                    f"{side.name} has {len(theirs.candidates)} candidates and {first.name} "
                    f"{len(ours.candidates)}, not the same pairs: among fewer, every image is easier."
                )
            if not np.array_equal(ours.summary.truth_seen, theirs.summary.truth_seen):
                yield (
                    f"{side.name} and {first.name} disagree on which pairs training saw: their S, U, HM and "
                    "AUC are of other images."
                )


def _seed_summaries(sides: Sequence[EvaluatedRun]) -> list[SeedSummary]:
    groups: list[list[EvaluatedRun]] = []
    for side in sides:
        same = next((group for group in groups if is_another_seed(side, group)), None)
        groups.append([side]) if same is None else same.append(side)
    return [
        SeedSummary(tuple(side.name for side in group), mean_and_sd([side.result for side in group]))
        for group in groups
        if len(group) > 1
    ]


def is_another_seed(side: EvaluatedRun, group: Sequence[EvaluatedRun]) -> bool:
    """Whether a run repeats the training of a group, on the same data, with a seed that is not in it yet.

    The same seed on another device, or a copy, says nothing about how much seeds differ.
    """
    config = side.config
    return (
        config is not None
        and side.repeated_config() == group[0].repeated_config()
        and side.data == group[0].data
        and all(other.config is not None and other.config.seed != config.seed for other in group)
    )


def mean_and_sd(results: Sequence[Result]) -> dict[str, dict[str, tuple[float, float] | None]]:
    """Mean and sample standard deviation by world and metric; None where a result has no such metric."""
    worlds: dict[str, dict[str, tuple[float, float] | None]] = {}
    for world in results[0].worlds:
        metrics = [result.worlds[world].metrics for result in results]
        values = {name: [getattr(m, name) for m in metrics] for name in METRIC_NAMES}
        worlds[world] = {
            name: None if None in numbers else (mean(numbers), stdev(numbers) if len(numbers) > 1 else 0.0)
            for name, numbers in values.items()
        }
    return worlds


def spread_json(values: tuple[float, float] | None) -> dict[str, float] | None:
    return None if values is None else {"mean": values[0], "sd": values[1]}


def _worlds_json(result: Result) -> dict[str, Any]:
    return {
        name: {
            **world.metrics.to_json(),
            "undefined": world.metrics.undefined(),
            "intervals": {metric: interval_json(span) for metric, span in world.intervals.items()},
        }
        for name, world in result.worlds.items()
    }
