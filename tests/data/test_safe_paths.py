from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refiner_cli.data.safe_paths import OUTPUT_MARKER, mark_output_folder, path_inside, portable, relative


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


@given(names=st.sets(st.text(max_size=400).filter(lambda name: "\ud800" not in name), max_size=4))
def test_what_is_made_from_any_input_stays_in_its_folder_under_a_name_of_its_own(names: set[str]) -> None:
    folder = Path("maps")
    paths = [path_inside(folder, name, ".jpg") for name in names]
    for path in paths:
        assert ".." not in path.parts
        assert path.is_relative_to(folder)
        assert path.name.endswith(".jpg")
        assert all(len(os.fsencode(part)) <= 255 for part in path.parts)
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize(
    "name", ["/a/b.jpg", "../b.jpg", "a/../../b.jpg", "a/" + "ä" * 126, "C:\\b.jpg", ".."]
)
def test_what_is_made_from_a_special_name_differs_from_that_of_its_plain_part(name: str) -> None:
    made = path_inside(Path("maps"), name, ".jpg")
    assert made.parts[0] == "maps"
    assert made not in {path_inside(Path("maps"), plain, ".jpg") for plain in ("b.jpg", "a/b.jpg", "_")}


def test_a_folder_of_outputs_is_marked_and_one_of_other_files_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(ValueError, match="other files"):
        mark_output_folder(tmp_path / "photos")
    for _ in range(2):
        mark_output_folder(tmp_path / "maps")
        (tmp_path / "maps" / "a.jpg").touch()
    assert (tmp_path / "maps" / OUTPUT_MARKER).is_file()
