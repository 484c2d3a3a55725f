"""A user's vocabulary: lists of states and objects, or of pairs, in text files."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from pathlib import Path

from refiner_cli.data.benchmark import World
from refiner_cli.data.labels import LabelSpace, Pair
from refiner_cli.data.lists import NoteFn, read_names, read_pair_list
from refiner_cli.errors import UsageError


def choose_space(
    made_for: LabelSpace,
    world: World,
    states: Path | None,
    objects: Path | None,
    pairs: Path | None,
    log: NoteFn = lambda _: None,
) -> LabelSpace:
    """The candidates: the model's own in the closed or open world, or those of the given files.

    A name that the model was trained with is found under any usual spelling (case, spaces, ``_``,
    ``-``); a pair counts as seen if the model was trained on it. ``log`` is called with a sentence
    about names that are listed more than once.

    Raises:
        UsageError: the files contradict each other, or the model needs them.
        DatasetError: a file cannot be read or understood.
    """
    if pairs and (states or objects):
        raise UsageError(
            "--pairs already says which states and objects there are.", hint="Leave the others out."
        )
    if pairs:
        listed = read_pair_list(pairs, made_for.states, made_for.objects, log)
        return _offered(listed, made_for)
    if states or objects:
        if not made_for.pairs and not (states and objects):
            raise UsageError("A backbone that was not trained needs both --states and --objects.")
        state_names = read_names(states, "state", made_for.states, log) if states else made_for.states
        object_names = read_names(objects, "object", made_for.objects, log) if objects else made_for.objects
        return _offered(product(state_names, object_names), made_for)
    if not made_for.pairs:
        raise UsageError(
            "A backbone that was not trained knows no states and objects.",
            hint="Add --states FILE and --objects FILE, or --pairs FILE.",
        )
    return made_for.open_world() if world == "open" else made_for


def _offered(pairs: Iterable[Pair], made_for: LabelSpace) -> LabelSpace:
    """A label space of the given pairs that names no other state or object than theirs."""
    candidates = set(pairs)
    states, objects = {state for state, _ in candidates}, {obj for _, obj in candidates}
    seen = {pair for pair in made_for.seen_pairs if pair[0] in states and pair[1] in objects}
    return LabelSpace.from_pairs(candidates, seen)
