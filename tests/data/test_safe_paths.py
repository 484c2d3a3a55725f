from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refiner_cli.data.safe_paths import portable, relative


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("./a//b.jpg", "a/b.jpg"),
        ("a\\b.jpg", "a/b.jpg"),
        ("...jpg", "...jpg"),
        ("ä b", "ä b"),
    ],
)
def test_ordinary_names_stay(name: str, path: str) -> None:
    assert relative(name) == path


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a\\..\\..\\x",
        "C:\\x",
        "c:x",
        "\\\\server\\share",
        "a\0b",
        "a\nb",
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        relative(name)


@given(st.text())
def test_whatever_is_accepted_stays_in_its_folder(name: str) -> None:
    try:
        path = relative(name)
    except ValueError:
        return
    folder = Path("/some/folder")
    assert folder in Path(f"{folder}/{path}").parents
    assert ".." not in Path(path).parts
    assert relative(path) == path


@pytest.mark.parametrize(
    "name", ["a/con", "NUL.jpg", "lpt1.txt", "a?.jpg", "a/x:y", "L.A.M.B./a.jpg", "a /b"]
)
def test_what_windows_cannot_name_is_refused_there_only(name: str) -> None:
    assert portable(name, windows=False) == name
    with pytest.raises(ValueError, match="Windows"):
        portable(name, windows=True)


def test_class_folders_of_ut_zappos_are_fine_on_windows() -> None:
    name = "Faux.Leather_Shoes.Sneakers.and.Athletic.Shoes/7965990.73008.jpg"
    assert portable(name, windows=True) == name
