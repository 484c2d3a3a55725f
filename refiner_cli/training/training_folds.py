"""The training split divided for a cross-validation: images are held out, and pairs are too.

In each part other pairs are held out with all their images, as unseen ones, as far as every state and every
object keeps another pair to be learned from; of the other pairs a share of the images is held out, as of seen
ones. So an image is held out once as one of a seen pair, and may be once more as one of an unseen pair; a
pair with a single image is held out as an unseen one or not at all.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from refiner_cli.data.benchmark import Benchmark, Split
from refiner_cli.data.labels import Pair
from refiner_cli.inference.encoded import EncodedBenchmark


def training_folds(benchmark: Benchmark, count: int, seed: int) -> list[Benchmark]:
    """The training split in ``count`` ways as a training and a validation split.

    All training pairs compete on validation. A way that holds out nothing is left out.
    """
    rows: dict[Pair, list[int]] = {pair: [] for pair in sorted(benchmark.pairs["train"])}
    for row, sample in enumerate(benchmark.samples["train"]):
        rows[sample.pair].append(row)
    chance = random.Random(f"folds {seed}")
    for found in rows.values():
        chance.shuffle(found)
    unseen = unseen_by_fold([pair for pair, found in rows.items() if found], count, chance)
    parts = []
    for fold in range(count):
        held = set[int]()
        for pair, found in rows.items():
            if pair in unseen[fold]:
                held.update(found)
            elif len(found) > 1:
                held.update(found[fold::count])
        if held:
            learned = [pair for pair in benchmark.pairs["train"] if pair not in unseen[fold]]
            parts.append(fold_benchmark(benchmark, learned, held))
    return parts


def unseen_by_fold(pairs: Sequence[Pair], count: int, chance: random.Random) -> list[set[Pair]]:
    """Pairs to hold out in each fold, each in one at most; every label keeps a pair in every fold."""
    order = list(pairs)
    chance.shuffle(order)
    held: list[set[Pair]] = [set() for _ in range(count)]
    left = [
        Counter(label for state, obj in pairs for label in (("state", state), ("object", obj))) for _ in held
    ]
    for number, pair in enumerate(order):
        labels = (("state", pair[0]), ("object", pair[1]))
        for fold in sorted(range(count), key=lambda one: (len(held[one]), (one - number) % count)):
            if all(left[fold][label] > 1 for label in labels):
                held[fold].add(pair)
                left[fold].subtract(labels)
                break
    return held


def fold_benchmark(benchmark: Benchmark, learned: Sequence[Pair], held: set[int]) -> Benchmark:
    """A benchmark with some training rows as its validation split, and no test split."""
    every = range(len(benchmark.samples["train"]))
    rows: dict[Split, list[int]] = {
        "train": [row for row in every if row not in held], "val": sorted(held), "test": [],
    }  # fmt: skip
    train = benchmark.samples["train"]
    part = replace(
        benchmark,
        pairs={"train": tuple(learned), "val": tuple(sorted(benchmark.pairs["train"])), "test": ()},
        samples={split: tuple(train[row] for row in chosen) for split, chosen in rows.items()},
    )
    if isinstance(part, EncodedBenchmark):
        vectors = part.vectors["train"]
        kept = {split: vectors[torch.tensor(chosen, dtype=torch.int64)] for split, chosen in rows.items()}
        part = replace(part, vectors=kept)
    return part
