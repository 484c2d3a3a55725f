"""The demo's vocabulary: objects, states, which pairs are plausible, and which are held out.

Twenty-two objects of three kinds and thirteen states. A kind decides which states make sense
(a carrot can be sliced, a key can be rusty), so that in the open world, as in life, some pairs are
feasible and some are not. The *demo benchmark* uses sixteen of the objects and twelve of the
states; the others are for the pre-training of the tiny backbone only. The pairs in ``val_unseen`` and
``test_unseen`` appear in no training image of either.

This module holds names only; it draws nothing and reads nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from refiner_cli.data.labels import Pair

KINDS: dict[str, tuple[str, ...]] = {
    "food": ("apple", "banana", "carrot", "lemon", "mushroom", "pear", "cherry", "onion"),
    "metal": ("bell", "hammer", "key", "spoon", "sword", "gear", "pot"),
    "cloth": ("boot", "glove", "hat", "shirt", "sock", "flag", "tie"),
}
STATES: dict[str, tuple[str, ...]] = {
    "burnt": ("food", "metal", "cloth"),
    "dirty": ("food", "metal", "cloth"),
    "frozen": ("food", "metal", "cloth"),
    "wet": ("food", "metal", "cloth"),
    "broken": ("food", "metal"),
    "painted": ("metal", "cloth"),
    "rotten": ("food",),
    "sliced": ("food",),
    "polished": ("metal",),
    "rusty": ("metal",),
    "striped": ("cloth",),
    "torn": ("cloth",),
    "dotted": ("cloth",),
}
# In the pre-training of the tiny backbone, not in the benchmark.
EXTRA_OBJECTS = frozenset({"cherry", "onion", "gear", "pot", "flag", "tie"})
EXTRA_STATES = frozenset({"dotted"})

VAL_UNSEEN = 22
TEST_UNSEEN = 28
MIN_TRAIN_PAIRS_PER_STATE = 3
MIN_TRAIN_PAIRS_PER_OBJECT = 3


def kind_of(name: str) -> str:
    """The kind of an object."""
    return next(kind for kind, names in KINDS.items() if name in names)


def feasible(states: frozenset[str], objects: frozenset[str]) -> list[Pair]:
    """Every pair of the given names that is plausible, sorted."""
    return sorted((s, o) for s in states for o in objects if kind_of(o) in STATES[s])


@dataclass(frozen=True)
class DemoSplit:
    """Pairs of the demo benchmark, in three sorted, disjoint lists."""

    train: tuple[Pair, ...]
    val_unseen: tuple[Pair, ...]
    test_unseen: tuple[Pair, ...]


@cache
def demo_split(holdout: int = 0) -> DemoSplit:
    """The demo's split. Every state and every object keeps at least three train pairs.

    Args:
        holdout: 0 is the demo's own; another number holds out other pairs, for a tiny backbone pre-trained
            without them (:mod:`refiner_cli.experiments.pretrain_tiny`).
    """
    states = frozenset(STATES) - EXTRA_STATES
    objects = frozenset(o for names in KINDS.values() for o in names) - EXTRA_OBJECTS
    pairs = feasible(states, objects)
    left = {name: sum(name in pair for pair in pairs) for name in states | objects}
    order = pairs[:]
    random.Random(2025 + holdout).shuffle(order)
    held_out: list[Pair] = []
    for state, obj in order:
        if len(held_out) == VAL_UNSEEN + TEST_UNSEEN:
            break
        if left[state] > MIN_TRAIN_PAIRS_PER_STATE and left[obj] > MIN_TRAIN_PAIRS_PER_OBJECT:
            left[state] -= 1
            left[obj] -= 1
            held_out.append((state, obj))
    train = sorted(set(pairs) - set(held_out))
    # Every second held-out pair goes to validation until it is full, so that both lists see
    # the same mix of states.
    val = held_out[: 2 * VAL_UNSEEN : 2]
    test = sorted(set(held_out) - set(val))
    return DemoSplit(tuple(train), tuple(sorted(val)), tuple(test))


def backbone_pairs(holdout: int = 0) -> list[Pair]:
    """Pairs for pre-training the tiny backbone of a hold-out: every plausible pair but the held-out ones."""
    states, objects = frozenset(STATES), frozenset(o for k in KINDS.values() for o in k)
    hidden = set(demo_split(holdout).val_unseen) | set(demo_split(holdout).test_unseen)
    return [pair for pair in feasible(states, objects) if pair not in hidden]
