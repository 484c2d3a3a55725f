"""A user's labelled photos: what every source of them gives, and how their labels are written.

Names in the published folder format hold no white space. So white space and underscores inside a
name become dots, as in UT-Zappos; prompts read a dot as a space again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from refiner_cli.data.benchmark import Split
from refiner_cli.data.labels import NameIndex, Pair, name_key, visible
from refiner_cli.data.lists import NoteFn, read_pair_list
from refiner_cli.errors import DatasetError


@dataclass(frozen=True)
class Photo:
    """One labelled image of the user's; ``split`` only if the user chose it."""

    file: Path
    pair: Pair
    split: Split | None = None


@dataclass(frozen=True)
class PhotoCollection:
    """What a folder or table holds.

    Attributes:
        photos: every label in one spelling.
        unlabelled: image files in places that name no pair.
        notes: what was understood or passed over, one sentence each.
    """

    photos: tuple[Photo, ...]
    unlabelled: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def clean_name(name: str) -> str:
    """A state or object as it stands in pair lists; empty where nothing but punctuation is left."""
    return re.sub(r"[\s_.]+", ".", visible(name)).strip(".") if name_key(name) else ""


def require_unicode(name: str, where: str) -> None:
    """Raise DatasetError for a name with bytes that are not UTF-8: no pair list can hold it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DatasetError(f"{where}: the name {name!r} is not UTF-8.", hint="Rename it.") from None


def labelled_pair(state: str, obj: str, where: str) -> Pair:
    """A state and an object as a pair list holds them. Raises DatasetError for names that it cannot hold."""
    pair = (clean_name(state), clean_name(obj))
    require_unicode(" ".join(pair), where)
    if not all(pair):
        raise DatasetError(f"{where}: a state and an object need a letter or a digit.")
    return pair


def one_spelling(photos: Sequence[Photo]) -> tuple[list[Photo], list[str]]:
    """Give each state and each object its most frequent spelling; return a note on each change."""
    spelling: list[dict[str, str]] = []
    notes: list[str] = []
    for role, names in (
        ("state", [photo.pair[0] for photo in photos]),
        ("object", [photo.pair[1] for photo in photos]),
    ):
        counts = Counter(names)
        ranked = sorted(counts, key=lambda name: (-counts[name], name != name.lower(), name))
        index = NameIndex(())
        chosen = {name: index.find_or_add(name) for name in ranked}
        notes += [
            f"the {role} {name!r} counts as {best!r}" for name, best in sorted(chosen.items()) if name != best
        ]
        spelling.append(chosen)
    states, objects = spelling
    merged = [replace(photo, pair=(states[photo.pair[0]], objects[photo.pair[1]])) for photo in photos]
    return merged, notes


def read_unseen(file: Path, pairs: Iterable[Pair], log: NoteFn) -> tuple[Pair, ...]:
    """Read a list of pairs to hold out, in the spelling of the given pairs. Raises DatasetError."""
    known = set(pairs)
    listed = read_pair_list(file, {state for state, _ in known}, {obj for _, obj in known}, log)
    return tuple(pair if pair in known else (clean_name(pair[0]), clean_name(pair[1])) for pair in listed)
