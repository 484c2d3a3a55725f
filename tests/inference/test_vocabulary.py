"""Candidates from a user's lists: the model's own names under any spelling, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from refiner_cli.data.labels import LabelSpace
from refiner_cli.inference.vocabulary import choose_space

SEEN = [("very.red", "tin.can"), ("old", "car"), ("new", "car")]
MADE_FOR = LabelSpace.from_pairs([*SEEN, ("old", "tin.can")], SEEN)


@pytest.mark.parametrize("spelling", ["very.red", "Very Red", "very_red", "\ufeffvery-red"])
def test_a_trained_pair_is_seen_under_any_spelling(tmp_path: Path, spelling: str) -> None:
    (tmp_path / "s.txt").write_text(f"{spelling}\nshiny\n", "utf-8")
    (tmp_path / "o.txt").write_text("Tin Can\n")
    (tmp_path / "p.txt").write_text(f"{spelling}, tin can\n", "utf-8")
    space = choose_space(MADE_FOR, "closed", tmp_path / "s.txt", tmp_path / "o.txt", None)
    assert space.pairs == (("shiny", "tin.can"), ("very.red", "tin.can"))
    assert space.seen.tolist() == [False, True]
    assert choose_space(MADE_FOR, "closed", None, None, tmp_path / "p.txt").seen.tolist() == [True]


def test_names_that_are_not_offered_do_not_compete(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("old car\nshiny car\n")
    space = choose_space(MADE_FOR, "closed", None, None, tmp_path / "p.txt")
    assert (space.states, space.objects) == (("old", "shiny"), ("car",))
    assert space.seen_table.tolist() == [[True], [False]]


def test_one_list_alone_keeps_the_models_other_names(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("old\nold\nOLD\n")
    logged: list[str] = []
    space = choose_space(MADE_FOR, "closed", tmp_path / "s.txt", None, None, logged.append)
    assert space.pairs == (("old", "car"), ("old", "tin.can"))
    assert len(logged) == 1
    assert "counted once" in logged[0]
