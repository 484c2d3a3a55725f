"""The demo benchmark: drawn on the spot, written in the published folder format."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refiner_cli.data.benchmark import (
    IMAGES,
    METADATA,
    SPLIT_FOLDER,
    SPLITS,
    Sample,
    Split,
    write_metadata,
    write_pairs,
)
from refiner_cli.demo import scenes
from refiner_cli.demo.vocabulary import Pair, feasible, split
from refiner_cli.files import atomic_folder

QUALITY = 92


@dataclass(frozen=True)
class Size:
    """Images a pair in each part. The defaults give some 2,000 training images."""

    train: int = 30
    val: int = 12
    test: int = 18


@dataclass(frozen=True)
class Task:
    """One image to draw."""

    file: Path
    pair: Pair
    seed: tuple[int, ...]
    clutter: int
    holdout: int  # of the pairs that are held out


def draw(task: Task) -> None:
    """Draw and write one image; the same task gives the same bytes."""
    scene_of(task).image.save(task.file, quality=QUALITY)


def scene_of(task: Task) -> scenes.Scene:
    """The scene of one image; the same task gives the same pixels."""
    rng = np.random.default_rng(task.seed)
    # Clutter shows any feasible pair but the held-out ones, as training data would.
    return scenes.draw_scene(task.pair, split(task.holdout).train, rng, task.clutter)


def parts(holdout: int) -> dict[Split, tuple[Pair, ...]]:
    """The pair lists: train, and for val and test as many seen pairs as unseen ones."""
    fixed = split(holdout)
    seen = random.Random(7).sample(fixed.train, len(fixed.val_unseen) + len(fixed.test_unseen))
    for_val = seen[: len(fixed.val_unseen)]
    for_test = seen[len(fixed.val_unseen) :]
    return {
        "train": fixed.train,
        "val": tuple(sorted([*for_val, *fixed.val_unseen])),
        "test": tuple(sorted([*for_test, *fixed.test_unseen])),
    }


def tasks(
    folder: Path, pairs: dict[Split, tuple[Pair, ...]], size: Size, seed: int, clutter: int, holdout: int
) -> Iterator[Task]:
    for number, name in enumerate(SPLITS):
        for index, pair in enumerate(pairs[name]):
            for copy in range(getattr(size, name)):
                file = folder / IMAGES / "_".join(pair) / f"{name}_{copy:03d}.jpg"
                yield Task(file, pair, (seed, number, index, copy), clutter, holdout)


def make_demo(
    folder: Path,
    seed: int = 0,
    size: Size | None = None,
    clutter: int = scenes.CLUTTER,
    holdout: int = 0,
) -> None:
    """Draw the demo benchmark into ``folder``, which must not exist; it appears only when whole.

    Args:
        seed: another seed, other pictures of the same pairs.
        size: images a pair.
        clutter: pieces of other objects on a picture, on average.
        holdout: another number holds out other pairs (:func:`refiner_cli.demo.vocabulary.split`).
    """
    size = size or Size()
    pairs = parts(holdout)
    with atomic_folder(folder) as part:
        for pair in feasible(*map(frozenset, zip(*itertools.chain(*pairs.values()), strict=True))):
            (part / IMAGES / "_".join(pair)).mkdir(parents=True, exist_ok=True)
        jobs = list(tasks(part, pairs, size, seed, clutter, holdout))
        with ProcessPoolExecutor() as workers:
            for _ in workers.map(draw, jobs, chunksize=64):
                pass
        for name in SPLITS:
            write_pairs(part / SPLIT_FOLDER / f"{name}_pairs.txt", pairs[name])
        samples: dict[Split, list[Sample]] = {name: [] for name in SPLITS}
        for job, name in zip(
            jobs, (n for n in SPLITS for _ in range(len(pairs[n]) * getattr(size, n))), strict=True
        ):
            samples[name].append(Sample(job.file.relative_to(part / IMAGES).as_posix(), job.pair))
        write_metadata(part / METADATA, {name: tuple(found) for name, found in samples.items()})
