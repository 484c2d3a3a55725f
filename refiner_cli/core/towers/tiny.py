"""The tiny backbone: a small open_clip ViT whose weights ship with the package.

The table of word vectors would be most of the file, and nearly all of it untrained: only the rows
of words that the recipe used are stored. The others are drawn from a fixed bit stream, the same on
every machine, so that an unknown word still has a vector of its own.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

NAME = "tiny"
TABLE = "token_embedding.weight"
WORD_STD = 0.02
IDS, ROWS = "words.ids", "words.rows"  # the stored part of the table

HERE = resources.files("refiner_cli.core.towers")


def config() -> dict[str, Any]:
    """The open_clip model configuration."""
    loaded: dict[str, Any] = json.loads(HERE.joinpath("tiny.json").read_text("utf-8"))
    return loaded


def weights_path() -> Path:
    """Where the shipped weights lie."""
    return Path(str(HERE.joinpath("tiny.safetensors")))


def word_table(rows: int, width: int) -> torch.Tensor:
    """The untrained word vectors, ``rows x width`` float32: uniform, standard deviation 0.02.

    Built on raw PCG64 output because NumPy promises that stream never changes.
    """
    raw = np.random.PCG64(0).random_raw(rows * width)
    uniform = (raw >> np.uint64(11)).astype(np.float64) / 2**53 - 0.5
    return torch.from_numpy((uniform * (12**0.5 * WORD_STD)).astype(np.float32).reshape(rows, width))


def save(state: dict[str, torch.Tensor], used: torch.Tensor, path: Path) -> None:
    """Write ``state`` in half precision, of the word table only the rows ``used`` (int64 ids)."""
    small = {name: value.half().contiguous() for name, value in state.items() if name != TABLE}
    small[IDS] = used
    small[ROWS] = state[TABLE][used].half().contiguous()
    save_file(small, path)


def is_small(path: Path) -> bool:
    """Whether a file was written by :func:`save`."""
    try:
        with safe_open(path, "pt") as file:
            return IDS in set(file.keys())
    except (SafetensorError, OSError):
        return False


def load(path: Path | None = None) -> dict[str, torch.Tensor]:
    """The full open_clip state dict, float32."""
    state = load_file(path or weights_path())
    ids, rows = state.pop(IDS), state.pop(ROWS)
    text = config()["text_cfg"]
    table = word_table(text["vocab_size"], text["width"])
    table[ids] = rows.float()
    return {name: value.float() for name, value in state.items()} | {TABLE: table}
