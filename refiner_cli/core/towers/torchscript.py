"""Tensors of a TorchScript archive, read without running any of its code.

OpenAI publishes CLIP as TorchScript archives: zip files whose ``data.pkl`` is a pickle of modules and
tensors. ``torch.jit.load`` would compile and run what is in them, and ``torch.load`` refuses them with
``weights_only``. Here the pickle is read by an unpickler that knows tensors, lists, dictionaries and empty
stand-ins for the modules, and nothing else.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Module:
    """Stands for any module of the archive: its attributes, nothing of its code."""

    attributes: dict[str, Any]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state if isinstance(state, dict) else {}


def is_torchscript(file: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip file with a table of constants."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_torchscript(file: Path) -> dict[str, Tensor]:
    """The state dict of an archive: every tensor under its path of attributes.

    Raises:
        pickle.UnpicklingError, ValueError, KeyError, zipfile.BadZipFile: the archive is damaged, or holds
            something else than modules and tensors.
    """
    with zipfile.ZipFile(file) as archive:
        root = archive.namelist()[0].split("/")[0]
        for entry in archive.infolist():  # a few compressed bytes could unpack to any size
            if entry.compress_type != zipfile.ZIP_STORED and entry.filename.startswith(f"{root}/data"):
                raise ValueError(f"{entry.filename} is compressed, which PyTorch never does")
        with archive.open(f"{root}/data.pkl") as stream:
            module = TensorUnpickler(stream, archive, root).load()
    state: dict[str, Tensor] = {}
    collect_tensors(module, "", state, set())
    return state


def collect_tensors(module: Any, prefix: str, state: dict[str, Tensor], seen: set[int]) -> None:
    """Add the tensors below a module to ``state``."""
    if not isinstance(module, Module) or id(module) in seen:
        return
    seen.add(id(module))
    for name, value in getattr(module, "attributes", {}).items():
        if isinstance(value, Tensor):
            state[f"{prefix}{name}"] = value
        else:
            collect_tensors(value, f"{prefix}{name}.", state, seen)


class TensorUnpickler(pickle.Unpickler):
    """Knows what a TorchScript archive of plain modules needs."""

    def __init__(self, stream: IO[bytes], archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(stream)
        self.archive = archive
        self.root = root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return Module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name.startswith("build_") and name.endswith("list"):
            return list
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which weights do not need")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _device, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(count, int):
            raise pickle.UnpicklingError("it holds an unknown kind of storage")
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.root}/data/{key}"))
            if len(content) < count * dtype.itemsize:
                raise ValueError(f"the tensor data {key} is cut short")
            empty = torch.empty(0, dtype=dtype)
            self.storages[key] = torch.frombuffer(content, dtype=dtype, count=count) if count else empty
        return self.storages[key]


def rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_rest: Any
) -> Tensor:
    """A tensor of its own memory. as_strided refuses to read beyond the storage."""
    return storage.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)
