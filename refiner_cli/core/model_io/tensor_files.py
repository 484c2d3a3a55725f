"""Safetensors files under any name, written with the permissions and the errors of any other file."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor

SYSTEM_ERROR = re.compile(r"(?P<reason>[^:]*) \(os error (?P<number>\d+)\)")  # as Rust words it


def load_tensors_from(file: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises OSError or SafetensorError."""
    try:
        str(file).encode()
    except UnicodeEncodeError:  # safetensors opens no file whose name is not UTF-8
        return load(file.read_bytes())
    return load_file(file)


def save_tensors(
    tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, which must be contiguous, into a file.

    Raises OSError where the system refuses, such as on a full disk: safetensors has an error of its own.
    """
    try:
        save_file(dict(tensors), file, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        found = SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(int(found["number"]), found["reason"].strip(), str(file)) from None
    _give_usual_permissions(file)


def _give_usual_permissions(file: Path) -> None:
    """Give a file the permissions of any new file: safetensors makes its files private."""
    probe = file.with_name(f".{file.name}.permissions")
    probe.touch()
    file.chmod(stat.S_IMODE(probe.stat().st_mode))
    probe.unlink()
