"""A TorchScript archive is read as data: nothing in it runs."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from refiner_cli.core.towers.torchscript import is_torchscript, read_torchscript
from refiner_cli.core.towers.weight_files import read_state_dict
from refiner_cli.errors import ModelFileError


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *parts: Any) -> None:
        self.call = function, parts

    def __reduce__(self) -> Any:
        return self.call


def write(file: Path, content: bytes, *, compressed: bool = False, data: bytes = b"") -> None:
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("a/data.pkl", content)
        archive.writestr("a/constants.pkl", pickle.dumps(()))
        archive.writestr("a/data/0", data)


@pytest.mark.parametrize(
    "value",
    [
        Call(os.system, "touch proof"),
        Call(eval, "open('proof', 'w')"),
        Call(getattr, "text", "upper"),
        Call(torch.load, "other.pt"),
        Call(print, "proof"),
    ],
)
def test_no_function_of_an_archive_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "w.pt", pickle.dumps({"weight": value}, protocol=2))
    assert is_torchscript(tmp_path / "w.pt")
    with pytest.raises(ModelFileError, match=r"w\.pt cannot be read.*weights do not need"):
        read_state_dict(tmp_path / "w.pt")
    assert not (tmp_path / "proof").exists()
    assert not capsys.readouterr().out


PLACE = ("stands for the storage",)


class TensorPickler(pickle.Pickler):
    """Writes a tensor whose storage is ``data/0``."""

    def __init__(self, stream: io.BytesIO, count: int) -> None:
        super().__init__(stream, protocol=2)
        self.count = count

    def persistent_id(self, value: Any) -> Any:
        return ("storage", torch.FloatStorage, "0", "cpu", self.count) if value is PLACE else None


def tensor(count: int, size: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    value = Call(torch._utils._rebuild_tensor_v2, PLACE, 0, size, (1,) * len(size), False, {})
    TensorPickler(stream, count).dump(value)
    return stream.getvalue()


@pytest.mark.parametrize(("count", "size"), [(8, (8,)), (4, (8,)), (4, (2, 900))])
def test_no_tensor_reaches_beyond_its_data(tmp_path: Path, count: int, size: tuple[int, ...]) -> None:
    write(tmp_path / "w.pt", tensor(count, size), data=bytes(16))
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_state_dict(tmp_path / "w.pt")


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "w.pt", pickle.dumps({}), compressed=True, data=bytes(10_000_000))
    with pytest.raises(ValueError, match="compressed"):
        read_torchscript(tmp_path / "w.pt")


def test_a_plain_checkpoint_is_not_taken_for_an_archive(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "w.pt")
    assert not is_torchscript(tmp_path / "w.pt")
    state, from_openai = read_state_dict(tmp_path / "w.pt")
    assert list(state) == ["a"]
    assert not from_openai
