"""Atomic files and folders: complete or absent."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from refiner_cli.files import atomic_file, atomic_folder, move_into_place, write_json


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    with pytest.raises(ValueError, match="stop"), atomic_file(file) as part:
        part.write_text("half")
        raise ValueError("stop")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with atomic_file(file) as part:
            part.write_text(text)
    assert file.read_text() == "two"


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), atomic_folder(tmp_path / "out") as part:
        (part / "a").write_text("half")
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []


ODD_NAMES = {
    "long": "n" * 255,
    "long, two bytes each": "ü" * 127,
    "long, four bytes each": "\N{RED APPLE}" * 63,
    "not UTF-8": os.fsdecode(b"\xff" * 9),
    "brackets and quotes": "[a]*?'\"\n",
}


@pytest.mark.parametrize("name", ODD_NAMES.values(), ids=ODD_NAMES)
def test_the_longest_and_oddest_names_can_be_written(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / name, {"name": name})
    with atomic_folder(tmp_path / "new" / name) as folder:
        (folder / name).write_text("text")
    assert json.loads((tmp_path / name).read_text("utf-8")) == {"name": name}
    assert (tmp_path / "new" / name / name).read_text() == "text"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_others_may_read_what_the_umask_lets_them(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {})
        with atomic_folder(tmp_path / "out") as part:
            (part / "b").touch()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.json", "out", "out/b")]
    assert modes == [0o666 & ~umask, 0o777 & ~umask, 0o666 & ~umask]


def failing_fsync(monkeypatch: pytest.MonkeyPatch, number: int, *, folders_only: bool = False) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if not folders_only or stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_fsync_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failing_fsync(monkeypatch, number)
    write_json(tmp_path / "a.json", {})
    with atomic_folder(tmp_path / "out") as part:
        (part / "b").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.json", "b", "out"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EISDIR])
def test_a_folder_that_cannot_be_synced_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failing_fsync(monkeypatch, number, folders_only=True)
    write_json(tmp_path / "a.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_bytes_that_did_not_reach_the_disk_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failing_fsync(monkeypatch, number)
    with pytest.raises(OSError, match=os.strerror(number)):
        write_json(tmp_path / "a.json", {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_moved_with_all_its_files_and_links(tmp_path: Path) -> None:
    part = tmp_path / "part"
    (part / "deep").mkdir(parents=True)
    (part / "deep/a").write_text("a")
    (part / "dangling").symlink_to("nowhere")
    move_into_place(part, tmp_path / "out")
    assert (tmp_path / "out/deep/a").read_text() == "a"
    assert not part.exists()
