"""Finding images: lazily, in order, each once, and nothing that would end the night."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refiner_cli.data.crop import Crop
from refiner_cli.data.safe_paths import OUTPUT_MARKER
from refiner_cli.errors import InputError
from refiner_cli.inference.decoding import decode_batches
from refiner_cli.inference.scan import (
    FileVersion,
    PathFilter,
    list_files,
    read_list,
    row_name,
    row_path,
    scan,
)
from refiner_cli.inference.sources.noted import NotedPlaces


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


def test_folders_of_other_programs_are_left_out_unless_given_by_hand(tmp_path: Path) -> None:
    fill(
        tmp_path, "a/1.jpg", "a/@eaDir/1.jpg/THUMB_XL.jpg", "__MACOSX/a/1.jpg", "$RECYCLE.BIN/2.jpg", "@1.jpg"
    )
    assert names(tmp_path) == ["@1.jpg", "a/1.jpg"]
    assert names(tmp_path / "a/@eaDir") == ["1.jpg/THUMB_XL.jpg"]


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


def test_a_missing_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
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


@given(names=st.sets(st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name), max_size=8))
def test_paths_of_any_bytes_have_names_of_their_own_that_lead_back(names: set[bytes]) -> None:
    names |= {b"\\xff.jpg", b"\xff.jpg", b"\\x5cxff.jpg", b"\\u0085.jpg"}
    found = {row_name(os.fsdecode(name)) for name in names}
    assert len(found) == len(names)
    assert {os.fsencode(row_path(name)) for name in found} == names
    for name in found:
        name.encode()


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_file_whose_name_is_not_utf8_is_found_by_its_name(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).touch()
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    fill(tmp_path, "caf\\xe9.jpg")
    assert names(tmp_path) == ["caf\\x5cxe9.jpg", "caf\\xe9.jpg"]
    for one in scan([tmp_path]):
        assert one.file.exists()
        assert NotedPlaces([row_name(str(tmp_path))]).locate(one.name) == str(one.file)


def test_an_entry_that_cannot_be_looked_at_costs_no_other(tmp_path: Path) -> None:
    fill(tmp_path, "a/x.jpg", "b.jpg")
    for name in ("a/round.jpg", "a/round"):
        (tmp_path / name).symlink_to(tmp_path / name)
    assert names(tmp_path) == ["a/round.jpg", "a/x.jpg", "b.jpg"]
    assert FileVersion.of(tmp_path / "a" / "round.jpg") == FileVersion()


def test_folders_may_be_deeper_than_the_stack_of_python(tmp_path: Path) -> None:
    depth = 1_100
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        for _ in range(depth):
            Path("d").mkdir()
            os.chdir("d")
        Path("x.jpg").touch()
    finally:
        os.chdir(before)
    fill(tmp_path, "y.jpg")
    found = names(tmp_path)
    assert found[-1] == "y.jpg"
    assert found[0] in {"d/" * depth + "x.jpg", *("d/" * deep for deep in range(depth + 1))}
    for _ in range(depth):  # shutil.rmtree would end in a recursion error, too
        (tmp_path / "d").rename(tmp_path / "e")
        (tmp_path / "e" / "x.jpg").unlink(missing_ok=True)
        if (tmp_path / "e" / "d").exists():
            (tmp_path / "e" / "d").rename(tmp_path / "d")
        (tmp_path / "e").rmdir()


def test_outputs_are_no_input(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "maps/a.jpg.jpg", f"maps/{OUTPUT_MARKER}", "out.jsonl")
    assert names(tmp_path) == ["a.jpg"]
    assert names(tmp_path / "maps") == ["a.jpg.jpg"]  # given by hand
    (tmp_path / "maps" / OUTPUT_MARKER).unlink()
    chosen = PathFilter(include=["*"], outputs=[tmp_path / "out.jsonl", tmp_path / "maps"])
    assert names(tmp_path, chosen=chosen) == ["a.jpg"]


def test_no_line_of_a_list_ends_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.jpg", "b.jpg")
    monkeypatch.chdir(tmp_path)
    lines = [b"\xef\xbb\xbfa.jpg\r\n", b"\r\n", b"\n", b"x\0y.jpg\n", b"caf\xe9.jpg\n",
             b"l" * 5000 + b".jpg\n", b"gone.jpg\r\n", b"b.jpg"]  # fmt: skip
    found = list(list_files(read_list(lines)))
    assert [one.name for one in found][:3] == ["a.jpg", "x\0y.jpg", "caf\\xe9.jpg"]
    assert [one.name for one in found][4:] == ["gone.jpg", "b.jpg"]
    ((_, results),) = decode_batches(found, 8, Crop(8, 8), 0)
    assert all(isinstance(result, str) for result in results)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may open every folder")
def test_a_folder_that_cannot_be_opened_is_a_find_of_its_own(tmp_path: Path) -> None:
    fill(tmp_path, "a/x.jpg", "b.jpg")
    (tmp_path / "a").chmod(0)
    try:
        assert names(tmp_path) == ["a/", "b.jpg"]
    finally:
        (tmp_path / "a").chmod(0o755)
