"""Metadata is read as plain data: nothing in it runs, and a few bytes never take gigabytes."""

from __future__ import annotations

import collections
import io
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from refiner_cli.data import metadata
from refiner_cli.data.benchmark import read_metadata
from refiner_cli.data.metadata import load_plain
from refiner_cli.errors import DatasetError
from tests.data.limits import memory_limit

ROWS = [
    {"image": f"ripe_apple/{number}.jpg", "attr": "ripe", "obj": "äpfel", "set": "train", "_image": "x/y.jpg"}
    for number in range(50)
]


def zipped(pickled: bytes, method: int = zipfile.ZIP_DEFLATED, name: str = "archive/data.pkl") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr(name, pickled)
    return stream.getvalue()


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_rows_as_any_torch_saves_them_are_read(tmp_path: Path, as_zip: bool, protocol: int) -> None:
    file = tmp_path / "m.t7"
    torch.save(ROWS, file, _use_new_zipfile_serialization=as_zip, pickle_protocol=protocol)
    assert read_metadata(file) == ROWS


def test_rows_that_python_2_pickled_are_read(tmp_path: Path) -> None:
    text = b"U\x04ripeU\x04attr"  # SHORT_BINSTRING
    (tmp_path / "m.t7").write_bytes(zipped(b"\x80\x02]}(U\x04attr" + text[:6] + b"ua."))
    assert load_plain(tmp_path / "m.t7") == [{"attr": "ripe"}]


class Command:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch ran",)


class Allocation:
    """What ``torch.load(weights_only=True)`` lets through."""

    def __reduce__(self) -> tuple[type[bytearray], tuple[int]]:
        return bytearray, (5 << 30,)


def pickled(value: Any) -> bytes:
    return pickle.dumps(value, 2)


HOSTILE = {
    "a command": pickled([Command()]),
    "a large allocation": pickled([Allocation()]),
    "an ordered dictionary": pickled([collections.OrderedDict(ROWS[0])]),
    "a large memo": b"\x80\x02]r\xff\xff\xff\x7fK\x03a.",
    "large bytes": b"\x80\x05\x96" + struct.pack("<Q", 5 << 30) + b".",
    "a large frame": b"\x80\x04\x95" + struct.pack("<Q", 5 << 30) + b"]K\x03a.",
    "a large text": b"\x80\x04\x8d" + struct.pack("<Q", 5 << 30) + b"a.",
    "a large number": b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"1.",
    "many lists": b"\x80\x02(" + b"]" * (6 << 20) + b"l.",
    "many dictionaries": b"\x80\x02(" + b"}" * (6 << 20) + b"l.",
    "many marks": b"\x80\x02" + b"(" * (6 << 20) + b".",
    "a deep nest": b"\x80\x02]" + b"\x85" * (6 << 20) + b".",
    "a bomb": bytes(100 << 20),
    "a persistent object": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "nothing": b"",
    "not a list": pickled({"image": "a"}),
    "a row that is no dictionary": pickled([3]),
    "a row without a key": pickled([{"image": "a", "attr": "b", "obj": "c"}]),
    "a row of numbers": pickled([dict.fromkeys(("image", "attr", "obj", "set"), 3)]),
    "text that is not Unicode": pickled([{**ROWS[0], "image": "\udcff.jpg"}]),
    "a key that cannot be hashed": b"\x80\x02}]K\x01s.",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_metadata_is_one_sentence_and_takes_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(metadata, "MAX_OPERATIONS", 200_000)  # in proportion to the limits below
    monkeypatch.setattr(metadata, "MAX_METADATA_BYTES", 8 << 20)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "m.t7"
    file.write_bytes(zipped(content))
    with memory_limit(400 << 20), pytest.raises(DatasetError) as caught:
        read_metadata(file)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        zipped(pickled(ROWS), name="other"),
        zipped(pickled(ROWS), zipfile.ZIP_LZMA),
        pickled(ROWS),
        pickled(1) + pickled(2) + pickled(3) + pickled(ROWS),
        zipped(pickled(ROWS))[:-30],
    ],
)
def test_what_torch_did_not_save_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.t7").write_bytes(content)
    with pytest.raises(DatasetError, match="cannot be read safely"):
        read_metadata(tmp_path / "m.t7")


def test_pipes_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, says in (("pipe", "not a regular file"), (".", "not a regular file"), ("m", "does not exist")):
        with pytest.raises(DatasetError, match=says):
            read_metadata(tmp_path / name)


@pytest.mark.parametrize("as_zip", [True, False])
def test_damaged_metadata_is_one_sentence(tmp_path: Path, as_zip: bool) -> None:
    """300 files with changed, lost and added bytes: rows come back, or one error."""
    torch.save(ROWS[:5], tmp_path / "m.t7", _use_new_zipfile_serialization=as_zip)
    good = (tmp_path / "m.t7").read_bytes()
    start = good.index(b"\x80\x02") if as_zip else 0
    with memory_limit(1 << 30):
        for seed in range(300):
            chance = random.Random(seed)
            content = bytearray(good)
            for _ in range(chance.randint(1, 6)):
                content[chance.randrange(start, min(len(content), start + 600))] = chance.randrange(256)
            if seed % 5 == 0:
                del content[chance.randrange(len(content)) :]
            (tmp_path / "m.t7").write_bytes(content)
            try:
                rows = read_metadata(tmp_path / "m.t7")
            except DatasetError as error:
                assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
            else:
                assert all(isinstance(row["image"], str) for row in rows)
