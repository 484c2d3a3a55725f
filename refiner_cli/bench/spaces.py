"""Label spaces of the published sizes: from real pair lists, or made up where none is given."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from refiner_cli.data.benchmark import read_pairs
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import UsageError


@dataclass(frozen=True)
class SpaceSize:
    """How many names and training pairs a label space has."""

    states: int
    objects: int
    pairs: int  # of training


# Purushwalkam et al. 2019 (MIT-States, UT-Zappos50K) and Mancini et al. 2021 (C-GQA).
SPACE_SIZES: Mapping[str, SpaceSize] = {
    "mit-states": SpaceSize(115, 245, 1262),
    "ut-zappos": SpaceSize(16, 12, 83),
    "c-gqa": SpaceSize(413, 674, 5592),
}


def label_space(name: str, splits: Path | None = None) -> LabelSpace:
    """The training pairs of a benchmark: a published size, or a folder with ``train_pairs.txt``.

    Args:
        name: one of SPACE_SIZES.
        splits: a folder that holds ``<name>/train_pairs.txt`` (``cgqa`` for ``c-gqa`` too).
    """
    if name not in SPACE_SIZES:
        raise UsageError(f"The label space {name!r} is unknown.", hint=f"Use {', '.join(SPACE_SIZES)}.")
    if splits is None:
        return made_up_space(SPACE_SIZES[name])
    folder = splits / name if (splits / name).is_dir() else splits / name.replace("-", "", 1)
    pairs = read_pairs(folder / "train_pairs.txt")
    return LabelSpace.from_pairs(pairs, pairs)


def made_up_space(size: SpaceSize) -> LabelSpace:
    """A label space with made-up names and pairs; every state and object occurs."""
    states = [f"state {i}" for i in range(size.states)]
    objects = [f"object {i}" for i in range(size.objects)]
    pairs = {
        (states[i % size.states], objects[i % size.objects]) for i in range(max(size.states, size.objects))
    }
    rest = sorted({(s, o) for s in states for o in objects} - pairs)
    pairs.update(random.Random(0).sample(rest, size.pairs - len(pairs)))
    return LabelSpace.from_pairs(pairs, pairs)
