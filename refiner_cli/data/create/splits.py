"""Which pairs stay unseen, and which images go where.

The field's condition: every state and every object occurs in training, only their combination is
new. A smallest set of pairs that covers all names therefore stays in training; of the rest, any may
be held out. That set is a minimum edge cover of the graph whose nodes are states and objects and
whose edges are pairs, and it has S + O - M pairs, where M is the size of a maximum matching
(Gallai 1959), so that what is called impossible here really is.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from refiner_cli.data.benchmark import Split
from refiner_cli.data.labels import Pair
from refiner_cli.errors import DatasetError

VAL_SHARE = 0.15  # of the images of a seen pair
TEST_SHARE = 0.15
_MAX_NAMED = 100  # pairs named in a message

Item = TypeVar("Item")  # an image, in whatever form


@dataclass(frozen=True)
class HeldOutPairs:
    """The pairs without training images, each list sorted."""

    val: tuple[Pair, ...]
    test: tuple[Pair, ...]


def choose_unseen(pairs: Iterable[Pair], fraction: float, seed: int) -> HeldOutPairs:
    """Hold out a fraction of the pairs: half of them for val, the other (larger) half for test.

    Raises:
        DatasetError: fewer can be held out; names the pairs that must stay, and how many may go.
    """
    every = sorted(set(pairs))
    wanted = round(fraction * len(every))
    rng = random.Random(f"pairs {seed}")
    cover = minimum_cover(every, rng)
    free = [pair for pair in every if pair not in cover]
    if wanted > len(free):
        possible = f"only {len(free)} can" if free else "none can"
        less = f"--unseen-fraction {int(1000 * len(free) / len(every)) / 1000:g} or less" if free else ""
        raise DatasetError(
            f"{wanted} of {len(every)} pairs cannot be unseen, {possible}: every state and "
            f"every object must occur in training. {_why(every, cover)}.",
            hint=f"Choose {less or '--all-train, which holds nothing out'}, "
            "or add images of the same states and objects in other pairs.",
        )
    return _halve(rng.sample(free, wanted))


def name_unseen(pairs: Iterable[Pair], unseen: Sequence[Pair], seed: int) -> HeldOutPairs:
    """Hold out exactly the given pairs: half of them for val, the other (larger) half for test.

    Raises:
        DatasetError: a pair has no image, or a state or object would be left without training; names them.
    """
    every = set(pairs)
    if strange := sorted(set(unseen) - every):
        raise DatasetError(
            f"There is no image of {_quote_pairs(strange)}.", hint="Correct the list of unseen pairs."
        )
    require_cover(every - set(unseen), set(unseen))
    return _halve(random.Random(f"named {seed}").sample(sorted(set(unseen)), len(set(unseen))))


def require_cover(train: set[Pair], others: set[Pair]) -> None:
    """Raise DatasetError unless every state and object of the other pairs occurs in a training pair."""
    states, objects = {state for state, _ in train}, {obj for _, obj in train}
    lacking = sorted(pair for pair in others if pair[0] not in states or pair[1] not in objects)
    if lacking:
        names = sorted({s for s, _ in lacking} - states) + sorted({o for _, o in lacking} - objects)
        raise DatasetError(
            f"Every state and every object must occur in training, but "
            f"{', '.join(map(repr, names[:_MAX_NAMED]))} would not: "
            f"the unseen pairs {_quote_pairs(lacking)} make that impossible.",
            hint="Leave at least one pair of each of these names in training.",
        )


def minimum_cover(pairs: Sequence[Pair], rng: random.Random) -> set[Pair]:
    """As few pairs as possible that contain every state and object; ``rng`` decides among equals."""
    neighbours: dict[str, list[str]] = {}
    for state, obj in rng.sample(pairs, len(pairs)):
        neighbours.setdefault(state, []).append(obj)
    partner: dict[str, str] = {}  # state -> object, and
    matched: dict[str, str] = {}  # object -> state: a maximum matching, by shortest augmenting paths
    for start in neighbours:
        reached: dict[str, str] = {}  # object -> the state it was reached from
        queue = [start]
        for state in queue:
            fresh = [obj for obj in neighbours[state] if obj not in reached]
            reached |= dict.fromkeys(fresh, state)
            end = next((obj for obj in fresh if obj not in matched), None)
            if end is not None:
                while end is not None:  # walk back, giving every state on the way its new object
                    owner = reached[end]
                    matched[end] = owner
                    partner[owner], end = end, partner.get(owner)
                break
            queue += [matched[obj] for obj in fresh]
    cover = {(state, obj) for obj, state in matched.items()}
    states, objects = set(matched.values()), set(matched)
    for state, obj in rng.sample(pairs, len(pairs)):
        if state not in states or obj not in objects:
            cover.add((state, obj))
            states.add(state)
            objects.add(obj)
    return cover


def assign_images(
    items: Mapping[Pair, Sequence[Item]], unseen: HeldOutPairs, seed: int
) -> dict[Split, list[tuple[Item, Pair]]]:
    """Images to splits: those of an unseen pair to its split, of a seen pair at least one to training.

    Each pair is split independently, so that new photos of one pair do not move those of another.
    """
    parts: dict[Split, list[tuple[Item, Pair]]] = {"train": [], "val": [], "test": []}
    held_out: dict[Pair, Split] = dict.fromkeys(unseen.val, "val")
    held_out |= dict.fromkeys(unseen.test, "test")
    for pair in sorted(items):
        found = list(items[pair])
        if pair in held_out:
            parts[held_out[pair]] += [(item, pair) for item in found]
            continue
        rng = random.Random(f"images {seed} {pair[0]} {pair[1]}")
        rng.shuffle(found)
        # A share of 0.15 of 4 images is one image for six pairs out of ten.
        test = min(int(len(found) * TEST_SHARE + rng.random()), len(found) - 1)
        val = min(int(len(found) * VAL_SHARE + rng.random()), len(found) - 1 - test)
        bounds: list[tuple[Split, int, int]] = [
            ("test", 0, test),
            ("val", test, test + val),
            ("train", test + val, len(found)),
        ]
        for split, start, end in bounds:
            parts[split] += [(item, pair) for item in found[start:end]]
    return parts


def _halve(chosen: Sequence[Pair]) -> HeldOutPairs:
    half = len(chosen) // 2
    return HeldOutPairs(tuple(sorted(chosen[:half])), tuple(sorted(chosen[half:])))


def _why(pairs: Sequence[Pair], cover: set[Pair]) -> str:
    states, objects = Counter(state for state, _ in pairs), Counter(obj for _, obj in pairs)
    alone = [pair for pair in pairs if states[pair[0]] == 1 or objects[pair[1]] == 1]
    if not alone:
        return f"At least {len(cover)} pairs are needed for that"
    only = "the only pair" if len(alone) == 1 else "each the only pair"
    return f"These must be in training, {only} of its state or of its object: {_quote_pairs(alone)}"


def _quote_pairs(pairs: Sequence[Pair]) -> str:
    more = f" and {len(pairs) - _MAX_NAMED} more" if len(pairs) > _MAX_NAMED else ""
    return ", ".join(f"'{state} {obj}'" for state, obj in pairs[:_MAX_NAMED]) + more
