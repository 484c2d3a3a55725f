"""Lists that users write: one reader, and one rule for which names are the same."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refiner_cli.data.labels import NameIndex, name_key, visible
from refiner_cli.data.lists import read_names, read_pair_list
from refiner_cli.errors import DatasetError

KNOWN = ("very.red", "half-eaten", "Faux.Leather", "crème", "new")
SPELLINGS = {
    "very.red": [
        "very red",
        "Very Red",
        "very_red",
        "VERY-RED",
        "  very   red ",
        "very\u00a0red",
        "very\u200b red",
    ],
    "half-eaten": ["half eaten", "half_eaten", "Half\u2010Eaten", "half\u2013eaten", "\ufeffhalf-eaten"],
    "Faux.Leather": ["faux leather", "Faux_Leather", "FAUX LEATHER"],
    "crème": [unicodedata.normalize("NFD", "crème"), "CRÈME", unicodedata.normalize("NFD", "Crème")],
}


@pytest.fixture
def logged() -> list[str]:
    return []


@pytest.mark.parametrize(("name", "spelling"), [(n, s) for n, some in SPELLINGS.items() for s in some])
def test_a_known_name_is_found_under_any_usual_spelling(tmp_path: Path, name: str, spelling: str) -> None:
    assert NameIndex(KNOWN).find(spelling) == name
    (tmp_path / "s.txt").write_text(f"old\n{spelling}\n", "utf-8")
    assert read_names(tmp_path / "s.txt", "state", KNOWN) == ("old", name)
    (tmp_path / "p.txt").write_text(f"{spelling},New Car\n", "utf-8")
    assert read_pair_list(tmp_path / "p.txt", KNOWN, ("new.car",)) == ((name, "new.car"),)


@given(st.text(max_size=12))
def test_the_key_of_a_key_is_itself_and_case_makes_no_difference(text: str) -> None:
    assert name_key(name_key(text)) == name_key(text)
    assert name_key(visible(text)) == name_key(text)
    assert name_key(unicodedata.normalize("NFD", text)) == name_key(text)


def test_an_exact_match_goes_before_any_other() -> None:
    assert [NameIndex(["Red", "red"]).find(name) for name in ("red", "Red", "RED", "green")] == [
        "red", "Red", "Red", None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfred\r\n\r\nold\r\n",
        "red\nold".encode("utf-16"),
        b"# colours\nred\n   \n  old  \n#end",
        b"red\rold\r",
        "\u200b\nred\nold\u200b\n".encode(),
    ],
)
def test_every_editors_files_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.txt").write_bytes(content)
    assert read_names(tmp_path / "s.txt", "state") == ("red", "old")


def test_two_spellings_of_a_name_count_once_and_are_named(tmp_path: Path, logged: list[str]) -> None:
    (tmp_path / "s.txt").write_text("Half Eaten\nold\nhalf_eaten\nold\n")
    assert read_names(tmp_path / "s.txt", "state", (), logged.append) == ("Half Eaten", "old")
    assert logged[0].startswith(f"{tmp_path / 's.txt'}: listed again, counted once: 'half_eaten' (line 3; ")
    assert logged[0].endswith("first in line 1, there 'Half Eaten'), 'old' (line 4; first in line 2)")
    (tmp_path / "p.txt").write_text("Red apple\nred Apple\n")
    assert read_pair_list(tmp_path / "p.txt", (), (), logged.append) == (("Red", "apple"),)
    assert "'red Apple' (line 2; first in line 1" in logged[1]


@pytest.mark.parametrize(
    ("line", "pair"),
    [
        ("red apple", ("red", "apple")),
        ("red\tbell pepper", ("red", "bell pepper")),
        ("light blue, cup", ("light blue", "cup")),
        ("half_eaten;bell_pepper", ("half-eaten", "bell_pepper")),
        ("very red tin can", ("very.red", "tin.can")),
    ],
)
def test_ways_to_write_a_pair(tmp_path: Path, line: str, pair: tuple[str, str]) -> None:
    (tmp_path / "p.txt").write_text(line)
    assert read_pair_list(tmp_path / "p.txt", KNOWN, ("tin.can",)) == (pair,)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"red\nold,brown\n", "line 2: 'old,brown' holds several names. Write one state per line."),
        (b"\nStates\nred\n", "line 2: 'States' looks like a header. Remove it"),
        (b"red\na photo of a red and shiny ball\n", "line 2: .* is not a state"),
        (b"red\ncr\xe8me\n", "not text in UTF-8: line 2 holds the byte 0xe8. Save it as UTF-8"),
        (b"---\n", "line 1: '---' is not a state"),
        (b"# nothing\n\n", "The list of states .* is empty"),
        (None, "does not exist"),
    ],
)
def test_a_line_that_is_not_understood_is_named_with_the_way_out(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / "s.txt").write_bytes(content)
    with pytest.raises(DatasetError, match=says):
        read_names(tmp_path / "s.txt", "state")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("red apple\nred\n", "line 2: 'red' is not a pair. Each line holds one state and one object"),
        ("red bell pepper\n", "line 1: 'red bell pepper' is not a pair"),
        ("a,b,c\n", "line 1"),
        ("red,\n", "line 1"),
        ("state,object\nred,apple\n", "line 1: 'state,object' looks like a header"),
        ("", "pair list .* is empty"),
    ],
)
def test_mistakes_in_a_list_of_pairs(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "p.txt").write_text(content)
    with pytest.raises(DatasetError, match=says):
        read_pair_list(tmp_path / "p.txt")
