"""The tiny backbone: a small open_clip ViT whose weights ship with the package.

The table of token embeddings would be most of the file, and nearly all of it untrained: only the rows
of tokens that occurred in training are stored. The others are drawn from a fixed bit stream, the same on
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
IDS, ROWS = "words.ids", "words.rows"  # the stored rows of the table

HERE = resources.files("refiner_cli.core.towers")


def tiny_config() -> dict[str, Any]:
    """The open_clip model configuration."""
    loaded: dict[str, Any] = json.loads(HERE.joinpath("tiny.json").read_text("utf-8"))
    return loaded


def weights_path() -> Path:
    """The file with the weights that come with the package."""
    return Path(str(HERE.joinpath("tiny.safetensors")))


def word_table(rows: int, width: int) -> torch.Tensor:
    """The untrained token embeddings, ``rows x width`` float32: uniform, standard deviation 0.02.

    Made from the raw output of PCG64, because NumPy guarantees that this stream never changes.
    """
    raw = np.random.PCG64(0).random_raw(rows * width)
    uniform = (raw >> np.uint64(11)).astype(np.float64) / 2**53 - 0.5
    return torch.from_numpy((uniform * (12**0.5 * WORD_STD)).astype(np.float32).reshape(rows, width))


def save_compact(state: dict[str, torch.Tensor], used: torch.Tensor, path: Path) -> None:
    """Write ``state`` in half precision, of the token embeddings only the rows ``used`` (int64 ids)."""
    compact = {name: value.half().contiguous() for name, value in state.items() if name != TABLE}
    compact[IDS] = used
    compact[ROWS] = state[TABLE][used].half().contiguous()
    save_file(compact, path)


def is_compact(path: Path) -> bool:
    """Whether a file was written by :func:`save_compact`."""
    try:
        with safe_open(path, "pt") as file:
            return IDS in set(file.keys())
    except (SafetensorError, OSError):
        return False


def load_compact(path: Path | None = None) -> dict[str, torch.Tensor]:
    """The complete open_clip state dict of such a file (None: the built-in one), float32."""
    state = load_file(path or weights_path())
    ids, rows = state.pop(IDS), state.pop(ROWS)
    text = tiny_config()["text_cfg"]
    table = word_table(text["vocab_size"], text["width"])
    table[ids] = rows.float()
    return {name: value.float() for name, value in state.items()} | {TABLE: table}
