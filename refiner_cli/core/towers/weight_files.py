"""Weights files: safetensors, PyTorch, TorchScript and big_vision's npz, read without running any code."""

from __future__ import annotations

import pickle
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from refiner_cli.core.towers.library_messages import first_line, quiet_libraries
from refiner_cli.core.towers.torchscript import is_torchscript, read_torchscript
from refiner_cli.core.towers.transformers_names import has_transformers_names, to_open_clip_names
from refiner_cli.errors import ModelFileError

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}  # what weights may be stored as
INTEGERS = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}  # and indices
StateDict = dict[str, Tensor]
WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training programs put the weights
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
EXPORT_PREFIX = "clip."  # of the backbone in a model that refiner exported, beside "trained."
# What old versions of open_clip and transformers stored although it can be computed.
STORED_CONSTANTS = ("attn_mask", ".embeddings.position_ids", ".embed_positions.weights")
# OpenAI's archives hold these beside the weights; in a state dict they tell where it comes from.
OPENAI_KEYS = {"input_resolution", "context_length", "vocab_size"}


def is_big_vision(file: Path) -> bool:
    """Whether a file holds SigLIP weights of Google's big_vision, which open_clip reads itself."""
    return file.suffix == ".npz"


def read_state_dict(file: Path) -> tuple[StateDict, bool]:
    """The tensors of a weights file, and whether it is one of OpenAI's.

    Raises:
        ModelFileError: the file cannot be read, or holds no weights.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise ModelFileError(f"The weights {file} are not a regular file.")
        with file.open("rb") as stream:
            head = stream.read(9)
        if head[8:9] == b"{":  # eight bytes of length, then JSON
            state: Any = load_file(file)
        elif is_torchscript(file):
            state = read_torchscript(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (
        OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError,
        SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, RecursionError, OverflowError,
    ) as error:  # fmt: skip
        raise ModelFileError(
            f"The weights file {file} cannot be read ({first_line(error)}).",
            hint="It is damaged, or not a weights file: download or copy it again.",
        ) from None
    state = unwrap(state)
    if not state:
        raise ModelFileError(f"The weights file {file} holds no tensors.")
    from_openai = is_torchscript(file) or state.keys() >= OPENAI_KEYS
    return {name: value for name, value in state.items() if name not in OPENAI_KEYS}, from_openai


def unwrap(content: Any) -> StateDict:
    """The tensors by name, without what a training program wraps around them."""
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        return {}
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    own = {name.removeprefix(EXPORT_PREFIX): v for name, v in state.items() if name.startswith(EXPORT_PREFIX)}
    if own and all(name.startswith((EXPORT_PREFIX, "trained.")) for name in state):
        return own
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load_big_vision(clip: nn.Module, file: Path) -> None:
    """Load SigLIP weights of big_vision. Raises ModelFileError if they do not fit."""
    try:
        with quiet_libraries():
            open_clip.load_checkpoint(clip, str(file))
    except Exception as error:  # noqa: BLE001 - open_clip's reader asserts, and torn archives fail in many ways
        raise ModelFileError(f"The weights {file} do not fit the backbone ({first_line(error)}).") from None


def load_tensors(clip: nn.Module, state: StateDict, source: str, name: str) -> list[str]:
    """Load tensors into a model as open_clip does, whatever their names, precision and image size.

    Args:
        source: what the tensors are called in errors.
        name: of the backbone.

    Returns:
        Sentences on what was adapted.

    Raises:
        ModelFileError: a tensor is missing, left over, of another shape or kind, or not finite.
    """
    state = to_open_clip_names(state) if has_transformers_names(state) else dict(state)
    wanted = clip.state_dict()
    try:
        with quiet_libraries():
            state = open_clip.convert.convert_state_dict(clip, state)
            if "positional_embedding" in state and "positional_embedding" not in wanted:
                state = open_clip.model.convert_to_custom_text_state_dict(state)
            notes = resize_positions(clip, state)
    except (RuntimeError, ValueError, KeyError, AssertionError, AttributeError, IndexError) as error:
        raise ModelFileError(f"{source} do not fit the backbone {name} ({first_line(error)}).") from None
    for scalar in ("logit_scale", "logit_bias"):  # a number or a vector of one, as the version had it
        if scalar in wanted and scalar in state and state[scalar].numel() == 1:
            state[scalar] = state[scalar].reshape(wanted[scalar].shape)
    if "logit_bias" in wanted and "logit_bias" not in state:
        state["logit_bias"] = torch.zeros_like(wanted["logit_bias"])
    for key in [key for key in state if key not in wanted]:
        if key.endswith(STORED_CONSTANTS) or key.startswith("text_decoder."):  # CoCa's caption decoder
            del state[key]
    reason = first_mismatch(wanted, state)
    if reason:
        raise ModelFileError(f"{source} do not fit the backbone {name}: {reason}.")
    clip.load_state_dict(state)
    return notes


def resize_positions(clip: nn.Module, state: StateDict) -> list[str]:
    """Interpolate position embeddings of another image size or text length in place, as open_clip does."""
    before = {key: value.shape for key, value in state.items() if key.endswith("positional_embedding")}
    open_clip.model.resize_pos_embed(state, clip)
    open_clip.model.resize_text_pos_embed(state, clip)
    return [
        f"{'image' if key.startswith('visual.') else 'text'} position embeddings interpolated from"
        f" {shape[0]} to {state[key].shape[0]} positions"
        for key, shape in before.items()
        if state[key].shape != shape
    ]


def first_mismatch(wanted: StateDict, found: StateDict) -> str:
    """Why the found tensors cannot be loaded, naming them; empty if they can."""
    for word, keys in (
        ("is missing", sorted(wanted.keys() - found.keys(), key=natural)),
        ("is left over", sorted(found.keys() - wanted.keys(), key=natural)),
    ):
        if keys:
            more = f", and {len(keys) - 1} more tensors" if len(keys) > 1 else ""
            return f"the tensor {keys[0]!r} {word}{more}"
    for key in sorted(wanted, key=natural):
        value = found[key]
        if value.shape != wanted[key].shape:
            return (
                f"the tensor {key!r} has the shape {list(value.shape)} instead of {list(wanted[key].shape)}"
            )
        if value.dtype not in (FLOATS if wanted[key].is_floating_point() else INTEGERS):
            return f"the tensor {key!r} holds {str(value.dtype).removeprefix('torch.')} numbers"
        if value.is_floating_point() and not value.isfinite().all():
            return f"the tensor {key!r} holds numbers that are not finite"
    return ""


def natural(name: str) -> list[str | int]:
    """A sort key by which block 2 comes before block 10."""
    return [part.zfill(9) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
