"""The demo benchmark: drawn locally, written in the published folder format."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
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
from refiner_cli.data.labels import Pair
from refiner_cli.data.workers import in_processes
from refiner_cli.demo import scenes
from refiner_cli.demo.vocabulary import demo_split, feasible
from refiner_cli.errors import RefinerError
from refiner_cli.files import atomic_folder
from refiner_cli.machine import cores

JPEG_QUALITY = 92
WORTH_A_PROCESS = 256  # images that take longer to draw than a process takes to start


@dataclass(frozen=True)
class DemoSize:
    """Images per pair in each split. The defaults give about 2,000 training images."""

    train: int = 30
    val: int = 12
    test: int = 18


@dataclass(frozen=True)
class DrawTask:
    """One image to draw."""

    file: Path
    pair: Pair
    seed: tuple[int, ...]
    clutter: int
    holdout: int  # which list of unseen pairs


def draw(task: DrawTask) -> None:
    """Draw and write one image; the same task gives the same bytes."""
    scene_of(task).image.save(task.file, quality=JPEG_QUALITY)


def scene_of(task: DrawTask) -> scenes.Scene:
    """The scene of one image; the same task gives the same pixels."""
    rng = np.random.default_rng(task.seed)
    # Clutter shows training pairs only: no image contains a held-out pair by accident.
    return scenes.draw_scene(task.pair, demo_split(task.holdout).train, rng, task.clutter)


def draw_all(tasks: Sequence[DrawTask]) -> None:
    """Draw many images, on all cores. Raises RefinerError if a process dies."""
    workers = min(cores(), len(tasks) // WORTH_A_PROCESS)
    try:
        for _ in in_processes(draw, tasks, workers, chunk=16):
            pass
    except BrokenExecutor:
        raise RefinerError(
            "A process that draws images died.", hint="Often the memory is too small."
        ) from None


def demo_pairs(holdout: int) -> dict[Split, tuple[Pair, ...]]:
    """The pair lists: train, and for val and test as many seen as unseen pairs."""
    fixed = demo_split(holdout)
    seen = random.Random(7).sample(fixed.train, len(fixed.val_unseen) + len(fixed.test_unseen))
    for_val = seen[: len(fixed.val_unseen)]
    for_test = seen[len(fixed.val_unseen) :]
    return {
        "train": fixed.train,
        "val": tuple(sorted([*for_val, *fixed.val_unseen])),
        "test": tuple(sorted([*for_test, *fixed.test_unseen])),
    }


def draw_tasks(
    folder: Path, pairs: dict[Split, tuple[Pair, ...]], size: DemoSize, seed: int, clutter: int, holdout: int
) -> Iterator[DrawTask]:
    for number, name in enumerate(SPLITS):
        for index, pair in enumerate(pairs[name]):
            for copy in range(getattr(size, name)):
                file = folder / IMAGES / "_".join(pair) / f"{name}_{copy:03d}.jpg"
                yield DrawTask(file, pair, (seed, number, index, copy), clutter, holdout)


def make_demo(
    folder: Path,
    seed: int = 0,
    size: DemoSize | None = None,
    clutter: int = scenes.CLUTTER,
    holdout: int = 0,
) -> None:
    """Draw the demo benchmark into ``folder``, which must not exist; it appears only when complete.

    Args:
        seed: another seed draws other images of the same pairs.
        size: images per pair.
        clutter: pieces of other objects per image, on average.
        holdout: another number holds out other pairs (:func:`refiner_cli.demo.vocabulary.demo_split`).
    """
    size = size or DemoSize()
    pairs = demo_pairs(holdout)
    with atomic_folder(folder) as part:
        for pair in feasible(*map(frozenset, zip(*itertools.chain(*pairs.values()), strict=True))):
            (part / IMAGES / "_".join(pair)).mkdir(parents=True, exist_ok=True)
        jobs = list(draw_tasks(part, pairs, size, seed, clutter, holdout))
        draw_all(jobs)
        for name in SPLITS:
            write_pairs(part / SPLIT_FOLDER / f"{name}_pairs.txt", pairs[name])
        samples: dict[Split, list[Sample]] = {name: [] for name in SPLITS}
        for job, name in zip(
            jobs, (n for n in SPLITS for _ in range(len(pairs[n]) * getattr(size, n))), strict=True
        ):
            samples[name].append(Sample(job.file.relative_to(part / IMAGES).as_posix(), job.pair))
        write_metadata(part / METADATA, {name: tuple(found) for name, found in samples.items()})
