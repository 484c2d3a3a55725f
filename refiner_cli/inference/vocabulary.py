"""An own vocabulary: lists of states and objects, or of pairs, in text files."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from refiner_cli.data.benchmark import World, read_pairs
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import DatasetError, UsageError


def read_names(file: Path) -> tuple[str, ...]:
    """One name a line; empty lines do not count. Raises DatasetError."""
    try:
        names = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"The list {file} cannot be read ({error}).") from None
    found = tuple(dict.fromkeys(name for name in names if name))
    if not found:
        raise DatasetError(f"The list {file} is empty.")
    return found


def choose_space(
    made_for: LabelSpace, world: World, states: Path | None, objects: Path | None, pairs: Path | None
) -> LabelSpace:
    """The candidates: the model's own in the closed or open world, or those of the given files.

    A pair counts as seen if the model was trained on it.
    """
    if pairs and (states or objects):
        raise UsageError(
            "--pairs already says which states and objects there are.", hint="Leave the others out."
        )
    if pairs:
        return LabelSpace.from_pairs(read_pairs(pairs), made_for.seen_pairs)
    if states or objects:
        if not made_for.pairs and not (states and objects):
            raise UsageError("A backbone that was not trained needs both --states and --objects.")
        some = read_names(states) if states else made_for.states
        things = read_names(objects) if objects else made_for.objects
        return LabelSpace.from_pairs(product(some, things), made_for.seen_pairs)
    if not made_for.pairs:
        raise UsageError(
            "A backbone that was not trained knows no states and objects.",
            hint="Add --states FILE and --objects FILE, or --pairs FILE.",
        )
    return made_for.open_world() if world == "open" else made_for
