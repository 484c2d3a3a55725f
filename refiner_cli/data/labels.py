"""The label space: states, objects, pairs, and which pairs are seen.

The only place that knows orderings and indices. Names are kept apart by role, because in real
benchmarks a word can be both a state and an object ("orange").
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from refiner_cli.errors import DatasetError

Pair = tuple[str, str]  # (state, object)
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_BETWEEN_WORDS = re.compile(r"[\s_.\-\u2010-\u2015]+")  # spaces of any kind, underscores, dots, dashes


def name_key(name: str) -> str:
    """What all usual spellings of a name have in common; two names are the same if their keys are.

    Upper and lower case, Unicode normal forms, invisible characters, and what stands between words
    (space, ``_``, ``.``, ``-``) make no difference: ``half-eaten`` is ``Half_Eaten``.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible(name)).casefold())
    return _BETWEEN_WORDS.sub(" ", folded).strip()


def visible(name: str) -> str:
    """A name without zero-width and control characters, in Unicode's composed form, one space for many."""
    kept = "".join(c for c in name if unicodedata.category(c) not in {"Cf", "Cc"} or c.isspace())
    return unicodedata.normalize("NFC", " ".join(kept.split()))


class NameIndex:
    """Finds a known name under any usual spelling. An exact match goes before any other."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = dict.fromkeys(names)
        self._by_key: dict[str, str] = {}
        for name in self._exact:
            self._by_key.setdefault(name_key(name), name)

    def find(self, name: str) -> str | None:
        """The known spelling, or None."""
        return name if name in self._exact else self._by_key.get(name_key(name))

    def find_or_add(self, name: str) -> str:
        """The known spelling of a name, which becomes known now if it was not."""
        return self._by_key.setdefault(name_key(name), name)


@dataclass(frozen=True)
class LabelSpace:
    """Candidates that compete for an image.

    Attributes:
        states: S names, in index order.
        objects: O names, in index order.
        pairs: P candidates ``(state, object)``, in index order.
        seen_pairs: the pairs training saw; those not among ``pairs`` do not compete here.
    """

    states: tuple[str, ...]
    objects: tuple[str, ...]
    pairs: tuple[Pair, ...]
    seen_pairs: frozenset[Pair]

    def __post_init__(self) -> None:
        for role, names in (("state", self.states), ("object", self.objects), ("pair", self.pairs)):
            if len(set(names)) != len(names):
                twice = next(name for i, name in enumerate(names) if name in names[:i])
                raise DatasetError(f"The {role} {twice!r} is listed twice in a label space.")
        states, objects = set(self.states), set(self.objects)
        for state, obj in self.pairs:
            if state not in states or obj not in objects:
                unknown = f"state {state!r}" if state not in states else f"object {obj!r}"
                raise DatasetError(f"The pair '{state} {obj}' names an unknown {unknown}.")

    @classmethod
    def from_pairs(cls, pairs: Iterable[Pair], seen: Iterable[Pair]) -> LabelSpace:
        """Sorted candidates; states and objects are those that the candidates and ``seen`` name."""
        candidates, seen_pairs = sorted(set(pairs)), frozenset(seen)
        every = set(candidates) | seen_pairs
        return cls(
            states=tuple(sorted({s for s, _ in every})),
            objects=tuple(sorted({o for _, o in every})),
            pairs=tuple(candidates),
            seen_pairs=seen_pairs,
        )

    @cached_property
    def pair_state(self) -> IntArray:
        """P int64: the index of each pair's state."""
        index = {name: i for i, name in enumerate(self.states)}
        return np.array([index[s] for s, _ in self.pairs], dtype=np.int64)

    @cached_property
    def pair_object(self) -> IntArray:
        """P int64: the index of each pair's object."""
        index = {name: i for i, name in enumerate(self.objects)}
        return np.array([index[o] for _, o in self.pairs], dtype=np.int64)

    @cached_property
    def seen(self) -> BoolArray:
        """P bool: whether training saw the pair."""
        return np.array([pair in self.seen_pairs for pair in self.pairs], dtype=np.bool_)

    @property
    def is_open(self) -> bool:
        """Whether every state competes with every object."""
        return len(self.pairs) == len(self.states) * len(self.objects)

    @cached_property
    def is_grid(self) -> bool:
        """Whether the pairs are ``product(states, objects)`` in this order."""
        S, O = len(self.states), len(self.objects)  # noqa: E741
        return self.is_open and bool(
            (self.pair_state.reshape(S, O) == np.arange(S)[:, None]).all()
            and (self.pair_object.reshape(S, O) == np.arange(O)).all()
        )

    @cached_property
    def seen_table(self) -> BoolArray:
        """S x O bool: whether training showed that state of that object."""
        table, seen = np.zeros((len(self.states), len(self.objects)), np.bool_), self.training()
        table[seen.pair_state, seen.pair_object] = True
        return table

    @cached_property
    def pair_index(self) -> dict[Pair, int]:
        return {pair: i for i, pair in enumerate(self.pairs)}

    def indices(self, pairs: Sequence[Pair]) -> IntArray:
        """N int64: the index of each given pair. Raises DatasetError for a pair that is no candidate."""
        try:
            return np.array([self.pair_index[pair] for pair in pairs], dtype=np.int64)
        except KeyError as error:
            state, obj = error.args[0]
            raise DatasetError(
                f"The pair '{state} {obj}' is not among the {len(self.pairs)} candidates."
            ) from None

    def with_pairs(self, pairs: Iterable[Pair]) -> LabelSpace:
        """The same states and objects, other candidates, sorted."""
        return LabelSpace(self.states, self.objects, tuple(sorted(set(pairs))), self.seen_pairs)

    def training(self) -> LabelSpace:
        """Only the seen pairs compete: the label space of the loss."""
        return self.with_pairs(self.seen_pairs)

    def open_world(self) -> LabelSpace:
        """Every state with every object, in the order of ``product(states, objects)``."""
        pairs = tuple(product(self.states, self.objects))
        return LabelSpace(self.states, self.objects, pairs, self.seen_pairs)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads back."""
        return {
            "states": list(self.states),
            "objects": list(self.objects),
            "pairs": [list(pair) for pair in self.pairs],
            "seen_pairs": [list(pair) for pair in sorted(self.seen_pairs)],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LabelSpace:
        """Raises KeyError, TypeError or DatasetError for a value that is no label space."""
        return cls(
            states=tuple(map(str, value["states"])),
            objects=tuple(map(str, value["objects"])),
            pairs=tuple((str(s), str(o)) for s, o in value["pairs"]),
            seen_pairs=frozenset((str(s), str(o)) for s, o in value["seen_pairs"]),
        )

    def fingerprint(self) -> str:
        """16 hex digits that change with any name, order or seen flag."""
        text = json.dumps(self.to_json(), ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
