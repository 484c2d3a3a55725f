"""Read safetensors files under any name."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load, load_file
from torch import Tensor


def load_tensors_from(file: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises OSError or SafetensorError."""
    try:
        str(file).encode()
    except UnicodeEncodeError:  # safetensors opens no file whose name is not UTF-8
        return load(file.read_bytes())
    return load_file(file)
