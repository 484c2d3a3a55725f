"""Folds: training pairs held out anew, so that choices need neither the validation nor the test part.

The 22 unseen pairs of the validation part are the same for every seed, and what suits just these need not
suit others. A fold holds out other pairs of the training part. Its validation and test parts are the same
pictures: its figures choose, and are not what a method reaches.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter

from refiner_cli.data.benchmark import Benchmark, Sample
from refiner_cli.data.labels import Pair
from refiner_cli.errors import DatasetError

PAIRS = 28  # that it is measured on, at most: so many held out, and so many that it trains on
PICTURES = 15  # of each of them, at most; of those it trains on no more than half
LEFT = 3  # pairs of every state and of every object that it trains on, at least


def fold(benchmark: Benchmark, number: int) -> Benchmark:
    """The training part of a benchmark, split anew.

    Args:
        number: which fold, from 0; another number holds out other pairs.

    Raises:
        DatasetError: the training part has too few pairs.
    """
    pairs = sorted(benchmark.pairs["train"])
    unseen = held_out(pairs, random.Random(1000 + number))
    trained = [pair for pair in pairs if pair not in unseen]
    images: dict[Pair, list[Sample]] = {pair: [] for pair in pairs}
    for sample in benchmark.samples["train"]:
        images[sample.pair].append(sample)
    seen = random.Random(7 + number).sample(trained, min(PAIRS, len(trained)))
    ends = {pair: images[pair][-min(PICTURES, math.ceil(len(images[pair]) / 2)) :] for pair in seen}
    measured = [sample for pair in unseen for sample in images[pair][:PICTURES]]
    measured += [sample for pair in seen for sample in ends[pair]]
    rest = [s for pair in trained for s in images[pair][: len(images[pair]) - len(ends.get(pair, ()))]]
    if not unseen or not rest:
        raise DatasetError(
            f"{benchmark.name}: its training part is too small to hold out pairs and leave {LEFT} of each "
            "state and object; study it without --folds."
        )
    candidates = tuple(sorted([*unseen, *seen]))
    return dataclasses.replace(
        benchmark,
        pairs={"train": tuple(trained), "val": candidates, "test": candidates},
        samples={"train": tuple(rest), "val": tuple(measured), "test": tuple(measured)},
    )


def held_out(pairs: list[Pair], chance: random.Random) -> list[Pair]:
    """At most ``PAIRS``, so that enough are left of every state and of every object."""
    states, objects = Counter(state for state, _ in pairs), Counter(obj for _, obj in pairs)
    order, chosen = list(pairs), list[Pair]()
    chance.shuffle(order)
    for state, obj in order:
        if len(chosen) < PAIRS and states[state] > LEFT and objects[obj] > LEFT:
            chosen.append((state, obj))
            states[state] -= 1
            objects[obj] -= 1
    return chosen
