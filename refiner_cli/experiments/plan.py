"""The trials of the study: by seed, by fold of the training split, or by hold-out of unseen pairs."""

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
from refiner_cli.demo.dataset import DemoSize, make_demo
from refiner_cli.demo.scenes import CLUTTER
from refiner_cli.experiments.folds import fold
from refiner_cli.experiments.pretrain_tiny import Recipe, pretrain
from refiner_cli.experiments.trial import Trial
from refiner_cli.experiments.variants import AMOUNTS, Variant
from refiner_cli.files import atomic_file

ONLY_TEST = DemoSize(train=1, val=1)
FOLD_SEEDS = 100  # first seed of the folds' trainings; the study's own start at 0
FOLD_DATA_SEED = 7  # of the demo images that folds are made of


def demo_folder(
    folder: Path, seed: int, amount: int = CLUTTER, size: DemoSize | None = None, holdout: int = 0
) -> Path:
    """The demo dataset of a seed and a hold-out, drawn if it is missing."""
    if not folder.exists():
        make_demo(folder, seed, size, amount, holdout)
    return folder


def demo_trials(
    out: Path, variants: Sequence[Variant], seeds: Sequence[int], holdouts: Sequence[int]
) -> list[Trial]:
    """One trial per seed and variant, on the demo benchmark with the hold-out of that seed."""
    places, others = dict[int, Path](), dict[int, dict[int, Path]]()
    amounts = [n for n in AMOUNTS if n != CLUTTER and any(variant.clutter for variant in variants)]
    for seed, holdout in zip(seeds, holdouts, strict=True):
        data = out / "data" / f"seed-{seed}"
        places[seed] = demo_folder(data, seed, holdout=holdout)
        test = {n: data.with_name(f"{data.name}-clutter-{n}") for n in amounts}
        others[seed] = {n: demo_folder(folder, seed, n, ONLY_TEST, holdout) for n, folder in test.items()}
    return [
        Trial(
            out / variant.name / str(seed),
            variant,
            seed,
            places[seed],
            others[seed] if variant.clutter else {},
        )
        for variant in variants
        for seed in seeds
    ]


def by_seed(out: Path, variants: Sequence[Variant], seeds: int, dataset: Path | None) -> list[Trial]:
    """One trial per seed and variant.

    Args:
        dataset: a dataset folder to study instead of the demo; its clutter cannot be varied.
    """
    if dataset is None:
        return demo_trials(out, variants, range(seeds), [0] * seeds)
    return [
        Trial(out / variant.name / str(seed), variant, seed, dataset)
        for variant in variants
        for seed in range(seeds)
    ]


def by_fold(out: Path, variants: Sequence[Variant], folds: int, dataset: Path | None) -> list[Trial]:
    """One trial per fold of the training split and variant.

    A fold has fewer images, so it is trained for more epochs: as many steps as in the study.
    """
    place = dataset or demo_folder(out / "data" / f"seed-{FOLD_DATA_SEED}", FOLD_DATA_SEED)
    whole = load_benchmark(place)
    count = len(whole.samples["train"])
    longer = [count / len(fold(whole, number).samples["train"]) for number in range(folds)]
    trials = []
    for variant in variants:
        for number in range(folds):
            plain = dataclasses.replace(variant, feasibility=False)
            trial = Trial(out / variant.name / str(number), plain, FOLD_SEEDS + number, place, fold=number)
            epochs = round(trial.config().train.epochs * longer[number])
            trials.append(dataclasses.replace(trial, variant=trained_for(plain, epochs)))
    return trials


def trained_for(variant: Variant, epochs: int) -> Variant:
    """A variant with another number of epochs, also where it shares the training of another."""
    if variant.of is not None:
        return dataclasses.replace(variant, of=trained_for(variant.of, epochs))
    return dataclasses.replace(variant, settings={**variant.settings, "train.epochs": epochs})


def by_holdout(out: Path, variants: Sequence[Variant], holdouts: int, workers: int) -> list[Trial]:
    """One trial per hold-out of unseen pairs, from 1 on, and variant; hold-out 0 is the demo itself.

    Each has its own tiny backbone, pre-trained without these pairs. Missing ones are made in parallel,
    in an hour of one core each.
    """
    numbers = range(1, holdouts + 1)
    backbones = {n: out / "backbones" / f"tiny-{n}.safetensors" for n in numbers}
    with processes(workers) as pool:
        missing = [n for n in numbers if not backbones[n].exists()]
        recipes = [Recipe(holdout=n) for n in missing]
        for _ in pool.map(make_backbone, [backbones[n] for n in missing], recipes):
            pass
    trials = demo_trials(out, variants, numbers, numbers)
    return [dataclasses.replace(trial, backbone=backbones[trial.seed]) for trial in trials]


def processes(workers: int) -> ProcessPoolExecutor:
    """A pool of spawned processes, each for one task."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=1)


def make_backbone(file: Path, recipe: Recipe) -> None:
    """Pre-train a tiny backbone; its file appears only when it is complete."""
    torch.set_num_threads(1)  # the order of sums depends on the number of threads
    with atomic_file(file) as part:
        pretrain(recipe, part, partial(print, f"{file.stem}:", file=sys.stderr, flush=True))
