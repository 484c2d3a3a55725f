"""Finding images: lazily, in order, each once, and nothing that would end the night."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from refiner_cli.errors import UsageError
from refiner_cli.inference.scan import PathFilter, list_files, locate, origin, scan


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(*places: Path, chosen: PathFilter = PathFilter()) -> list[str]:  # noqa: B008 - frozen
    return [one.name for one in scan(places, chosen)]


def test_a_scan_is_recursive_sorted_and_skips_hidden_and_other_files(tmp_path: Path) -> None:
    fill(tmp_path, "b.jpg", "a/z.PNG", "a/note.txt", ".hidden/x.jpg", "a/.x.jpg")
    assert names(tmp_path) == ["a/z.PNG", "b.jpg"]


def test_patterns_choose_files_and_leave_out_folders(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "a/1.png", "b/raw/2.jpg", "b/scan.dat")
    assert names(tmp_path, chosen=PathFilter(include=["*.jpg"])) == ["a/1.jpg", "b/raw/2.jpg"]
    assert names(tmp_path, chosen=PathFilter(exclude=["raw"])) == ["a/1.jpg", "a/1.png"]
    assert names(tmp_path, chosen=PathFilter(include=["b/*.dat"])) == ["b/scan.dat"]


def test_links_to_files_count_and_links_to_folders_end_no_circle(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "2.jpg").symlink_to(tmp_path / "a" / "1.jpg")
    (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "a" / "round").symlink_to(tmp_path, target_is_directory=True)
    assert names(tmp_path) == ["a/1.jpg", "a/2.jpg", "a/gone.jpg"]
    assert names(tmp_path / "a" / "round") == ["a/1.jpg", "a/2.jpg", "a/gone.jpg"]


def test_same_names_in_two_folders_stay_apart_and_overlaps_count_once(tmp_path: Path) -> None:
    fill(tmp_path, "a/x.jpg", "b/x.jpg")
    found = names(tmp_path / "a", tmp_path / "b", tmp_path / "a" / "x.jpg")
    assert found == [f"{tmp_path.as_posix()}/a/x.jpg", f"{tmp_path.as_posix()}/b/x.jpg"]
    assert origin([tmp_path / "a"]) != origin([tmp_path / "b"])


def test_a_missing_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        scan([tmp_path / "nowhere"])


def test_a_list_is_read_as_it_comes(tmp_path: Path) -> None:
    asked: list[str] = []

    def lines() -> object:
        for name in ("gone.jpg", "b.jpg", "b.jpg"):
            asked.append(name)
            yield tmp_path / name

    found = list_files(lines())  # type: ignore[arg-type]
    assert next(found).file == tmp_path / "gone.jpg"
    assert asked == ["gone.jpg"]
    assert len(list(found)) == 1


def test_a_name_leads_back_to_its_file(tmp_path: Path) -> None:
    fill(tmp_path, "a/x.jpg", "b/y.jpg")
    for places in ([tmp_path], [tmp_path / "a", tmp_path / "b"]):
        assert all(locate(places, one.name) == one.file for one in scan(places))


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_name_that_is_no_text_can_be_written(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).touch()
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    assert names(tmp_path) == ["caf\\xe9.jpg"]
    assert next(scan([tmp_path])).file.exists()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may open every folder")
def test_a_folder_that_cannot_be_opened_is_a_find_of_its_own(tmp_path: Path) -> None:
    fill(tmp_path, "a/x.jpg", "b.jpg")
    (tmp_path / "a").chmod(0)
    try:
        assert names(tmp_path) == ["a/", "b.jpg"]
    finally:
        (tmp_path / "a").chmod(0o755)
