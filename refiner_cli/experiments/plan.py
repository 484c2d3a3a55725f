"""What the study is made of: cells by seed, by fold of the training part, and by choice of held-out pairs."""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.demo.dataset import Size, make_demo
from refiner_cli.demo.scenes import CLUTTER
from refiner_cli.experiments import pretrain_tiny as recipe
from refiner_cli.experiments.folds import fold
from refiner_cli.experiments.trial import Trial
from refiner_cli.experiments.variants import AMOUNTS, Variant
from refiner_cli.files import atomic_file

ONLY_TEST = Size(train=1, val=1)
APART = 100  # the seeds of the folds, and the drawing they are made of: not those of the study
DRAWING = 7


def drawn(folder: Path, seed: int, amount: int = CLUTTER, size: Size | None = None, choice: int = 0) -> Path:
    """The demo pictures of a seed and a choice, drawn if they are missing."""
    if not folder.exists():
        make_demo(folder, seed, size, amount, choice)
    return folder


def demo_trials(
    out: Path, arms: Sequence[Variant], seeds: Sequence[int], choices: Sequence[int]
) -> list[Trial]:
    """One cell a seed, of every arm, on the demo benchmark of the seed's choice."""
    places, others = dict[int, Path](), dict[int, dict[int, Path]]()
    amounts = [n for n in AMOUNTS if n != CLUTTER and any(arm.clutter for arm in arms)]
    for seed, choice in zip(seeds, choices, strict=True):
        data = out / "data" / f"seed-{seed}"
        places[seed] = drawn(data, seed, choice=choice)
        test = {n: data.with_name(f"{data.name}-clutter-{n}") for n in amounts}
        others[seed] = {n: drawn(folder, seed, n, ONLY_TEST, choice) for n, folder in test.items()}
    return [
        Trial(out / arm.name / str(seed), arm, seed, places[seed], others[seed] if arm.clutter else {})
        for arm in arms
        for seed in seeds
    ]


def by_seed(out: Path, arms: Sequence[Variant], seeds: int, dataset: Path | None) -> list[Trial]:
    """One cell a seed, of every arm.

    Args:
        dataset: study this one instead of the demo benchmark; its clutter cannot be changed.
    """
    if dataset is None:
        return demo_trials(out, arms, range(seeds), [0] * seeds)
    return [Trial(out / arm.name / str(seed), arm, seed, dataset) for arm in arms for seed in range(seeds)]


def by_fold(out: Path, arms: Sequence[Variant], folds: int, dataset: Path | None) -> list[Trial]:
    """One cell a fold of the training part, of every arm.

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
            cell = Trial(out / arm.name / str(number), plain, APART + number, place, fold=number)
            epochs = round(cell.config().train.epochs * longer[number])
            cells.append(dataclasses.replace(cell, arm=trained_for(plain, epochs)))
    return cells


def trained_for(arm: Variant, epochs: int) -> Variant:
    """An arm with another number of epochs, whoever trains it."""
    if arm.of is not None:
        return dataclasses.replace(arm, of=trained_for(arm.of, epochs))
    return dataclasses.replace(arm, settings={**arm.settings, "train.epochs": epochs})


def by_choice(out: Path, arms: Sequence[Variant], choices: int, workers: int) -> list[Trial]:
    """One cell a choice of held-out pairs, from 1 on, of every arm; 0 is the demo itself.

    Each has a tiny backbone of its own, which has never seen the pairs. Those that are missing are
    made side by side, in an hour of one core each.
    """
    numbers = range(1, choices + 1)
    backbones = {n: out / "backbones" / f"tiny-{n}.safetensors" for n in numbers}
    with processes(workers) as pool:
        missing = [n for n in numbers if not backbones[n].exists()]
        recipes = [recipe.Recipe(choice=n) for n in missing]
        for _ in pool.map(make_backbone, [backbones[n] for n in missing], recipes):
            pass
    cells = demo_trials(out, arms, numbers, numbers)
    return [dataclasses.replace(cell, backbone=backbones[cell.seed]) for cell in cells]


def processes(workers: int) -> ProcessPoolExecutor:
    """Processes that start from nothing, each for one task."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=1)


def make_backbone(file: Path, asked: recipe.Recipe) -> None:
    """Make a tiny backbone; its file appears only when it is whole."""
    torch.set_num_threads(1)  # sums are made in another order on another number of threads
    with atomic_file(file) as part:
        recipe.train(asked, part, partial(print, f"{file.stem}:", file=sys.stderr, flush=True))
