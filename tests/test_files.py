"""Whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from refiner_cli.files import whole_file, whole_folder


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    with pytest.raises(ValueError, match="stop"), whole_file(file) as part:
        part.write_text("half")
        raise ValueError("stop")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with whole_file(file) as part:
            part.write_text(text)
    assert file.read_text() == "two"


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), whole_folder(tmp_path / "out") as part:
        (part / "a").write_text("half")
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []
