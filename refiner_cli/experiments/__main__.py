"""``python -m refiner_cli.experiments --out DIR``: train and measure every arm, print the tables.

``--folds`` measures on held-out training pairs instead, which is where choices are made: the test split
chooses nothing. ``--choices`` measures on other pairs than the demo's, each choice with a tiny backbone that
has never seen them: what holds there holds for more than one lucky list.

Cells run side by side, one CPU thread each, so that the figures do not follow the number of cores. A
study that was interrupted goes on where it was; cells that are there are not made again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import as_completed
from pathlib import Path

from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.errors import RefinerError
from refiner_cli.experiments import regions
from refiner_cli.experiments.plan import by_choice, by_fold, by_seed, processes
from refiner_cli.experiments.tables import tables
from refiner_cli.experiments.trial import Found, Trial, run_trials
from refiner_cli.experiments.variants import METHODS, PARTS
from refiner_cli.files import atomic_file

ARMS = (*METHODS, *PARTS)


def by_training(cells: Sequence[Trial]) -> list[list[Trial]]:
    """The cells of one training together, one after the other."""
    together: dict[Path, list[Trial]] = {}
    for cell in cells:
        together.setdefault(cell.trained().folder, []).append(cell)
    return list(together.values())


def study(out: Path, cells: Sequence[Trial], workers: int) -> str:
    """Fill all cells and return the tables."""
    results: dict[str, dict[int, Found]] = {cell.arm.name: {} for cell in cells}
    with processes(workers) as pool:
        waiting = {pool.submit(run_trials, together): together for together in by_training(cells)}
        done = 0
        for future in as_completed(waiting):
            for cell, found in zip(waiting[future], future.result(), strict=True):
                done += 1
                results[cell.arm.name][cell.seed] = found
                worlds = ", ".join(f"{world} AUC {found[world]['AUC']:.1f}" for world in ("closed", "open"))
                print(f"{done}/{len(cells)} {cell.arm.name} seed {cell.seed}: {worlds}", file=sys.stderr)
    text = tables({name: [found[seed] for seed in sorted(found)] for name, found in results.items()})
    with atomic_file(out / "study.md") as part:
        part.write_text(text, "utf-8")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m refiner_cli.experiments", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="where everything goes; an older study goes on"
    )
    parser.add_argument("--seeds", type=int, default=5)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--folds", type=int, default=0, help="measure on so many folds of the training part")
    instead.add_argument("--choices", type=int, default=0, help="measure on so many other choices of pairs")
    parser.add_argument("--arms", nargs="+", choices=[arm.name for arm in ARMS], help="only these")
    parser.add_argument("--dataset", type=Path, help="study a dataset folder instead of the demo benchmark")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="cells at once")
    asked = parser.parse_args()
    if asked.choices and asked.dataset is not None:
        parser.error("--choices are of the demo benchmark; study another dataset with --folds or --seeds")
    arms = [arm for arm in ARMS if asked.arms is None or arm.name in asked.arms]
    try:
        if asked.dataset is not None:
            load_benchmark(asked.dataset)  # says at once what is wrong with it
        if asked.folds:
            out = asked.out / "folds"
            cells = by_fold(out, arms, asked.folds, asked.dataset)
        elif asked.choices:
            out = asked.out / "choices"
            cells = by_choice(out, arms, asked.choices, asked.workers)
        else:
            out = asked.out
            cells = by_seed(out, arms, asked.seeds, asked.dataset)
        print(study(out, cells, asked.workers))
    except RefinerError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["regions"]:
        regions.main(sys.argv[2:])
    else:
        main()
