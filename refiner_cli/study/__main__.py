"""``python -m refiner_cli.study --out DIR``: train and measure every arm, print the tables.

``--folds`` measures on held-out training pairs instead, which is where choices are made: the test split
chooses nothing.

Cells run side by side, one CPU thread each, so that the figures do not follow the number of cores. A
study that was interrupted goes on where it was; cells that are there are not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.demo.dataset import Size, make_demo
from refiner_cli.demo.scenes import CLUTTER
from refiner_cli.errors import RefinerError
from refiner_cli.files import whole_file
from refiner_cli.study.arms import AMOUNTS, METHODS, PARTS, Arm
from refiner_cli.study.cell import Cell, Found, fill
from refiner_cli.study.folds import fold
from refiner_cli.study.table import tables

ONLY_TEST = Size(train=1, val=1)
ARMS = (*METHODS, *PARTS)
APART = 100  # the seeds of the folds, and the drawing they are made of: not those of the study
DRAWING = 7


def drawn(folder: Path, seed: int, amount: int = CLUTTER, size: Size | None = None) -> Path:
    """The demo pictures of a seed, drawn if they are missing."""
    if not folder.exists():
        make_demo(folder, seed, size, amount)
    return folder


def plan(out: Path, arms: Sequence[Arm], seeds: int, dataset: Path | None) -> list[Cell]:
    """Every cell, one a seed.

    Args:
        dataset: study this one instead of the demo benchmark; its clutter cannot be changed.
    """
    places, cluttered = [dataset] * seeds if dataset else [], [dict[int, Path]()] * seeds
    if dataset is None:
        for seed in range(seeds):
            places.append(drawn(out / "data" / f"seed-{seed}", seed))
            test = {n: out / "data" / f"seed-{seed}-clutter-{n}" for n in AMOUNTS if n != CLUTTER}
            cluttered[seed] = {n: drawn(folder, seed, n, ONLY_TEST) for n, folder in test.items()}
    return [
        Cell(out / arm.name / str(seed), arm, seed, places[seed], cluttered[seed] if arm.clutter else {})
        for arm in arms
        for seed in range(seeds)
    ]


def plan_folds(out: Path, arms: Sequence[Arm], folds: int, dataset: Path | None) -> list[Cell]:
    """Every cell, one a fold of the training part.

    A fold has fewer pictures, so it is passed over more often: as many steps as in the study.
    """
    place = dataset or drawn(out / "data" / f"seed-{DRAWING}", DRAWING)
    whole = load_benchmark(place)
    count = len(whole.samples["train"])
    longer = [count / len(fold(whole, number).samples["train"]) for number in range(folds)]
    cells = []
    for arm in arms:
        for number in range(folds):
            plain = dataclasses.replace(arm, priors=False)
            cell = Cell(out / arm.name / str(number), plain, APART + number, place, fold=number)
            epochs = round(cell.config().train.epochs * longer[number])
            trained = dataclasses.replace(plain, settings={**arm.settings, "train.epochs": epochs})
            cells.append(dataclasses.replace(cell, arm=trained))
    return cells


def study(out: Path, cells: Sequence[Cell], workers: int) -> str:
    """Fill all cells and return the tables."""
    results: dict[str, dict[int, Found]] = {cell.arm.name: {} for cell in cells}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=1) as pool:
        waiting = {pool.submit(fill, cell): cell for cell in cells}
        for done, future in enumerate(as_completed(waiting), 1):
            cell = waiting[future]
            results[cell.arm.name][cell.seed] = found = future.result()
            worlds = ", ".join(f"{world} AUC {found[world]['AUC']:.1f}" for world in ("closed", "open"))
            print(f"{done}/{len(cells)} {cell.arm.name} seed {cell.seed}: {worlds}", file=sys.stderr)
    text = tables({name: [found[seed] for seed in sorted(found)] for name, found in results.items()})
    with whole_file(out / "study.md") as part:
        part.write_text(text, "utf-8")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m refiner_cli.study", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="where everything goes; an older study goes on"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folds", type=int, default=0, help="measure on so many folds of the training part")
    parser.add_argument("--arms", nargs="+", choices=[arm.name for arm in ARMS], help="only these")
    parser.add_argument("--dataset", type=Path, help="study a dataset folder instead of the demo benchmark")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="cells at once")
    asked = parser.parse_args()
    arms = [arm for arm in ARMS if asked.arms is None or arm.name in asked.arms]
    try:
        if asked.dataset is not None:
            load_benchmark(asked.dataset)  # says at once what is wrong with it
        if asked.folds:
            out = asked.out / "folds"
            cells = plan_folds(out, arms, asked.folds, asked.dataset)
        else:
            out = asked.out
            cells = plan(out, arms, asked.seeds, asked.dataset)
        print(study(out, cells, asked.workers))
    except RefinerError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
