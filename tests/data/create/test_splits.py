from __future__ import annotations

import random
from collections import Counter
from itertools import combinations, product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refiner_cli.data.benchmark import read_pairs
from refiner_cli.data.create.splits import (
    HeldOutPairs,
    assign_images,
    choose_unseen,
    minimum_cover,
    name_unseen,
)
from refiner_cli.data.labels import Pair
from refiner_cli.errors import DatasetError

some_pairs = st.sets(st.tuples(st.sampled_from("abcd"), st.sampled_from("wxyz")), min_size=1, max_size=9)
FULL = list(product(["cut", "ripe", "old"], ["apple", "pear", "plum", "fig"]))


def covers(chosen: set[Pair] | tuple[Pair, ...], pairs: set[Pair]) -> bool:
    return {s for s, _ in chosen} == {s for s, _ in pairs} and {o for _, o in chosen} == {o for _, o in pairs}


@given(some_pairs, st.integers(0, 3))
def test_the_cover_is_as_small_as_brute_force_finds(pairs: set[Pair], seed: int) -> None:
    cover = minimum_cover(sorted(pairs), random.Random(seed))
    assert cover <= pairs
    assert covers(cover, pairs)
    assert not any(covers(smaller, pairs) for smaller in combinations(pairs, len(cover) - 1))


def test_the_cover_of_a_long_chain_needs_no_recursion() -> None:
    chain = [(f"s{n}", f"o{n + d}") for n in range(3000) for d in (0, 1)]
    assert len(minimum_cover(chain, random.Random(0))) == 3001


@given(some_pairs, st.floats(0, 1), st.integers(0, 3))
def test_what_is_held_out_leaves_every_name_in_training(pairs: set[Pair], fraction: float, seed: int) -> None:
    wanted = round(fraction * len(pairs))
    most = len(pairs) - len(minimum_cover(sorted(pairs), random.Random(0)))
    if wanted > most:
        with pytest.raises(DatasetError, match=f"only {most} can" if most else "none can"):
            choose_unseen(pairs, fraction, seed)
        return
    unseen = choose_unseen(pairs, fraction, seed)
    assert len(unseen.val) == wanted // 2
    assert len(unseen.val) + len(unseen.test) == wanted
    assert not set(unseen.val) & set(unseen.test)
    assert covers(pairs - set(unseen.val) - set(unseen.test), pairs)


def test_the_choice_follows_the_seed() -> None:
    assert choose_unseen(FULL, 0.3, 1) == choose_unseen(list(reversed(FULL)), 0.3, 1)
    assert len({choose_unseen(FULL, 0.3, seed) for seed in range(10)}) > 1


def test_every_possible_pair_is_chosen_by_some_seed() -> None:
    chosen = {pair for seed in range(60) for pair in choose_unseen(FULL, 0.3, seed).test}
    assert chosen == set(FULL)


def test_the_pairs_that_make_a_wish_impossible_are_named() -> None:
    pairs = [
        ("cut", "apple"),
        ("cut", "pear"),
        ("ripe", "apple"),
        ("ripe", "pear"),
        ("old", "shoe"),
        ("cut", "fig"),
    ]
    with pytest.raises(DatasetError, match="only 2 can") as caught:
        choose_unseen(pairs, 0.5, 0)
    assert "'cut fig', 'old shoe'" in str(caught.value)
    assert "--unseen-fraction 0.333" in caught.value.hint
    assert len(choose_unseen(pairs, 0.333, 0).test) == 1


def test_named_pairs_are_held_out() -> None:
    named = [("cut", "apple"), ("old", "fig"), ("ripe", "plum")]
    unseen = name_unseen(FULL, named, 0)
    assert sorted((*unseen.val, *unseen.test)) == sorted(named)
    assert len(unseen.val) == 1


def test_a_named_pair_without_an_image_is_named() -> None:
    with pytest.raises(DatasetError, match="no image of 'raw fish'"):
        name_unseen(FULL, [("raw", "fish")], 0)


def test_named_pairs_that_take_a_name_out_of_training_are_named() -> None:
    named = [(state, "fig") for state in ("cut", "ripe", "old")]
    with pytest.raises(
        DatasetError, match=r"but 'fig' would not: the unseen pairs 'cut fig', 'old fig', 'ripe fig'"
    ):
        name_unseen(FULL, named, 0)


def test_images_follow_their_pairs() -> None:
    items = {pair: [f"{pair}{n}" for n in range(40)] for pair in FULL}
    unseen = HeldOutPairs(val=(("cut", "fig"),), test=(("old", "pear"), ("ripe", "fig")))
    parts = assign_images(items, unseen, 0)
    assert sorted(item for part in parts.values() for item, _ in part) == sorted(
        i for f in items.values() for i in f
    )
    counts = {split: Counter(pair for _, pair in part) for split, part in parts.items()}
    assert counts["val"]["cut", "fig"] == counts["test"]["old", "pear"] == counts["test"]["ripe", "fig"] == 40
    seen = set(FULL) - {*unseen.val, *unseen.test}
    assert set(counts["train"]) == seen
    assert all(5 <= counts[split][pair] <= 7 for split in ("val", "test") for pair in seen)


@given(st.integers(1, 6), st.integers(0, 50))
def test_a_seen_pair_keeps_an_image_for_training(count: int, seed: int) -> None:
    parts = assign_images({("cut", "apple"): list(range(count))}, HeldOutPairs((), ()), seed)
    assert parts["train"]
    assert sorted(item for part in parts.values() for item, _ in part) == list(range(count))


def test_new_images_of_one_pair_do_not_move_those_of_another() -> None:
    few = {("cut", "apple"): list(range(20)), ("cut", "pear"): list(range(20))}
    more = {**few, ("cut", "pear"): list(range(30)), ("old", "fig"): [1]}
    before, after = (assign_images(items, HeldOutPairs((), ()), 0) for items in (few, more))
    for split in ("train", "val", "test"):
        assert [i for i, p in before[split] if p[1] == "apple"] == [
            i for i, p in after[split] if p[1] == "apple"
        ]


def test_c_gqa_as_large_as_it_is(splits: Path) -> None:
    pairs = {
        pair for split in ("train", "val", "test") for pair in read_pairs(splits / f"cgqa/{split}_pairs.txt")
    }
    unseen = choose_unseen(pairs, 0.28, 0)
    assert covers(pairs - set(unseen.val) - set(unseen.test), pairs)
