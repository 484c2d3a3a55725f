"""Files of tensors: what the system refuses is the system's own error, and permissions are the usual ones."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest
import torch

from refiner_cli.core.model_io.tensor_files import load_tensors_from, save_tensors


def test_what_the_system_refuses_names_the_reason_and_the_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    file, before = tmp_path / "x.safetensors", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))  # as a full disk, with another number
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            save_tensors({"a": torch.zeros(2**16)}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(file))


def test_a_file_of_tensors_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    file, other = tmp_path / "x.safetensors", tmp_path / "other"
    save_tensors({"a": torch.arange(3.0)}, file)
    other.touch()
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    assert sorted(tmp_path.iterdir()) == [other, file]
    assert load_tensors_from(file)["a"].tolist() == [0, 1, 2]
