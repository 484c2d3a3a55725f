"""The label space: orderings, indices, worlds."""

from __future__ import annotations

import numpy as np
import pytest

from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import DatasetError

PAIRS = [("wet", "dog"), ("old", "car"), ("orange", "orange"), ("old", "dog")]
SPACE = LabelSpace.from_pairs(PAIRS, [("old", "car"), ("wet", "dog"), ("new", "car")])


def test_names_and_pairs_are_sorted_and_a_word_may_be_state_and_object() -> None:
    assert SPACE.states == ("new", "old", "orange", "wet")
    assert SPACE.objects == ("car", "dog", "orange")
    assert SPACE.pairs == (("old", "car"), ("old", "dog"), ("orange", "orange"), ("wet", "dog"))


def test_indices_point_at_the_names() -> None:
    for i, (state, obj) in enumerate(SPACE.pairs):
        assert SPACE.states[SPACE.pair_state[i]] == state
        assert SPACE.objects[SPACE.pair_object[i]] == obj
    assert SPACE.seen.tolist() == [True, False, False, True]
    assert SPACE.indices([("wet", "dog"), ("old", "car")]).tolist() == [3, 0]


def test_the_open_world_is_the_product_in_order() -> None:
    world = SPACE.open_world()
    assert len(world.pairs) == 12
    assert np.array_equal(world.pair_state, np.repeat(np.arange(4), 3))
    assert np.array_equal(world.pair_object, np.tile(np.arange(3), 4))
    assert world.seen.sum() == 3


def test_training_has_the_seen_pairs_only() -> None:
    assert SPACE.training().pairs == (("new", "car"), ("old", "car"), ("wet", "dog"))
    assert SPACE.training().seen.all()


def test_it_survives_json_and_its_fingerprint_tells_changes() -> None:
    assert LabelSpace.from_json(SPACE.to_json()) == SPACE
    assert SPACE.fingerprint() != SPACE.training().fingerprint()


def test_mistakes_are_named() -> None:
    with pytest.raises(DatasetError, match="listed twice"):
        LabelSpace(("a", "a"), ("b",), (), frozenset())
    with pytest.raises(DatasetError, match="unknown object 'c'"):
        LabelSpace(("a",), ("b",), (("a", "c"),), frozenset())
    with pytest.raises(DatasetError, match="'red dog' is not among the 4 candidates"):
        SPACE.indices([("red", "dog")])
