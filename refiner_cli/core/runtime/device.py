"""Device, precision, memory, attention kernels: every decision comes back with its reason."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from refiner_cli.errors import EnvironmentLacksError, UsageError
from refiner_cli.machine import available_memory

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GIB = 2**30


@dataclass(frozen=True)
class RuntimeOptions:
    """How to run. Nothing here changes a result but the precision."""

    precision: torch.dtype = torch.float32
    batch_size: int = 64
    num_workers: int = 0


def pick_device(requested: str = "auto") -> tuple[torch.device, str]:
    """The device for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``, and why.

    Raises EnvironmentLacksError where the device is not available, UsageError for an unknown
    name.
    """
    if requested == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"auto: {torch.cuda.get_device_name()}"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "auto: Apple GPU"
        return torch.device("cpu"), "auto: no GPU found"
    kind, _, number = requested.partition(":")
    if kind not in {"cpu", "cuda", "mps"} or (number and not (kind == "cuda" and number.isdecimal())):
        raise UsageError(f"The device {requested!r} is unknown.", hint="Use auto, cpu, cuda, cuda:N or mps.")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise EnvironmentLacksError(
            f"The device {requested} is not available: "
            f"PyTorch {torch.__version__} sees {found} CUDA devices.",
            hint="Use --device auto, or install a driver and a PyTorch built for CUDA.",
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise EnvironmentLacksError(
            "The device mps is not available: PyTorch sees no Apple GPU.", hint="Use --device auto."
        )
    return torch.device(kind, int(number)) if number else torch.device(kind), "requested"


def pick_precision(requested: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The autocast type for ``auto``, ``fp32``, ``bf16`` or ``fp16`` on a device, and why."""
    if requested != "auto":
        if requested not in PRECISIONS:
            raise UsageError(f"The precision {requested!r} is unknown.", hint="Use auto, fp32, bf16 or fp16.")
        if requested == "fp16" and device.type == "cpu":
            raise EnvironmentLacksError(
                "fp16 is not supported on the CPU.", hint="Use --precision fp32 or bf16."
            )
        return PRECISIONS[requested], "requested"
    if device.type == "cuda":
        with torch.cuda.device(device):
            supported = torch.cuda.is_bf16_supported(including_emulation=False)
        if supported:
            return torch.bfloat16, "auto: the GPU computes bf16"
        return torch.float16, "auto: the GPU has no bf16"
    return torch.float32, f"auto: {device.type} results stay comparable in fp32"


@contextlib.contextmanager
def autocast(device: torch.device, precision: torch.dtype) -> Iterator[None]:
    """Mixed precision for a forward pass."""
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        yield


@contextlib.contextmanager
def attention_kernels(device: torch.device) -> Iterator[None]:
    """The fastest attention kernels for a forward and backward pass on this device.

    The fused CPU kernel is quick forward but takes half of a training step backward (measured
    with 65 tokens in bf16: 1.7 s a step with it, 1.1 s without), so a CPU trains without it.
    """
    if device.type == "cpu":
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield


def use_deterministic_kernels() -> None:
    """Let this process use only kernels whose results repeat bit by bit; torch refuses any other."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(mode=True)
    torch.backends.cudnn.benchmark = False


def to_device(values: Tensor | npt.NDArray[Any], device: torch.device) -> Tensor:
    """Values of main memory on a device, without waiting for what the device still computes."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    return tensor.to(device, non_blocking=device.type == "cuda")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device; for the CPU (and MPS, which shares it), of main memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory()
