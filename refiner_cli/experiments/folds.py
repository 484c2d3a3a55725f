"""Folds: training pairs held out again, so that settings are chosen on neither validation nor test.

The 22 unseen pairs of the validation split are the same for every seed, and what suits them need not suit
others. A fold holds out other pairs of the training split. Its validation and test splits are the same
images: its figures are for choosing settings and overstate what a method reaches.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter

from refiner_cli.data.benchmark import Benchmark, Sample
from refiner_cli.data.labels import Pair
from refiner_cli.errors import DatasetError

FOLD_PAIRS = 28  # at most: held-out pairs that a fold is measured on, and as many seen pairs
MAX_IMAGES = 15  # measured per pair; of a seen pair at most half of its images
MIN_LEFT = 3  # training pairs left of every state and every object


def fold(benchmark: Benchmark, number: int) -> Benchmark:
    """The training split of a benchmark, split again.

    Args:
        number: which fold, from 0; each holds out other pairs.

    Raises:
        DatasetError: the training split has too few pairs.
    """
    pairs = sorted(benchmark.pairs["train"])
    unseen = held_out(pairs, random.Random(1000 + number))
    trained = [pair for pair in pairs if pair not in unseen]
    images: dict[Pair, list[Sample]] = {pair: [] for pair in pairs}
    for sample in benchmark.samples["train"]:
        images[sample.pair].append(sample)
    seen = random.Random(7 + number).sample(trained, min(FOLD_PAIRS, len(trained)))
    ends = {pair: images[pair][-min(MAX_IMAGES, math.ceil(len(images[pair]) / 2)) :] for pair in seen}
    measured = [sample for pair in unseen for sample in images[pair][:MAX_IMAGES]]
    measured += [sample for pair in seen for sample in ends[pair]]
    rest = [s for pair in trained for s in images[pair][: len(images[pair]) - len(ends.get(pair, ()))]]
    if not unseen or not rest:
        raise DatasetError(
            f"{benchmark.name}: the training split is too small to hold out pairs and keep {MIN_LEFT} per "
            "state and object.",
            hint="Study it without --folds.",
        )
    candidates = tuple(sorted([*unseen, *seen]))
    return dataclasses.replace(
        benchmark,
        pairs={"train": tuple(trained), "val": candidates, "test": candidates},
        samples={"train": tuple(rest), "val": tuple(measured), "test": tuple(measured)},
    )


def held_out(pairs: list[Pair], chance: random.Random) -> list[Pair]:
    """At most ``FOLD_PAIRS`` pairs, leaving ``MIN_LEFT`` of every state and every object."""
    states, objects = Counter(state for state, _ in pairs), Counter(obj for _, obj in pairs)
    order, chosen = list(pairs), list[Pair]()
    chance.shuffle(order)
    for state, obj in order:
        if len(chosen) < FOLD_PAIRS and states[state] > MIN_LEFT and objects[obj] > MIN_LEFT:
            chosen.append((state, obj))
            states[state] -= 1
            objects[obj] -= 1
    return chosen
