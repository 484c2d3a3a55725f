"""A pretended GPU: FakeTensorMode knows shapes, types and devices of tensors on ``cuda``, but no values.

Only what asks whether there is a GPU is replaced. A tensor that reaches the host (``item``, ``tolist``,
``numpy``) holds zeros or True there; :class:`HostSyncs` counts how often the host waited for the device.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
COMPILER = shutil.which("cc")


def driver_environment(folder: Path) -> dict[str, str]:
    """The environment of a process that finds a pretended CUDA driver, compiled into ``folder``."""
    library, source = folder / "libcuda.so.1", Path(__file__).with_name("pretended_driver.c")
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return {"LD_PRELOAD": str(library), "LD_LIBRARY_PATH": str(folder)}


def zeros_of(tensor: Tensor) -> Any:
    """What a fake tensor holds on the host: zeros, and True, so that what asks for finite numbers goes on."""
    if tensor.dtype == torch.bool:
        return np.ones(tuple(tensor.shape), np.bool_)
    kind = str(tensor.dtype).removeprefix("torch.").replace("bfloat16", "float32")
    return np.zeros(tuple(tensor.shape), np.dtype(kind))


class HostSyncs(TorchDispatchMode):
    """Counts, by operation, what makes the host wait for the device."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            if not isinstance(args[0], FakeTensor):
                return func(*args)
            if args[0].device.type == "cpu":
                return 1  # an optimizer's count of steps
            self.found["item"] += 1
            return zeros_of(args[0]).item()
        if func is aten.nonzero.default and isinstance(args[0], FakeTensor):
            if args[0].device.type == "cuda":
                self.found["nonzero"] += 1
            count = args[0].numel() if args[0].ndim else 1  # as if every element were true
            return torch.zeros(count, args[0].ndim, dtype=torch.int64, device=args[0].device)
        if func is aten._to_copy.default:  # there is no GPU to copy values to
            if isinstance(args[0], FakeTensor):
                args[0].constant = None
            else:
                args = (self.fake.from_tensor(args[0]), *args[1:])
        result = func(*args, **kwargs)
        if func is aten._to_copy.default:
            came, went = args[0].device.type, result.device.type
            if came != went and not kwargs.get("non_blocking"):
                self.found[f"copy {came} to {went}"] += 1
        return result


@contextlib.contextmanager
def pretended_cuda() -> Iterator[HostSyncs]:
    """Within it, tensors can be made on ``cuda``; autocast and the choice of the device believe in it."""
    plain_numpy = Tensor.numpy
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    syncs = HostSyncs(fake)

    def numpy(self: Tensor, **options: Any) -> Any:
        return zeros_of(self) if isinstance(self, FakeTensor) else plain_numpy(self, **options)

    def tolist(self: FakeTensor) -> Any:
        if self.device.type == "cuda":
            syncs.found["tolist"] += 1
        return zeros_of(self).tolist()

    patches = {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.get_device_name": lambda *_: "pretended",
        "torch.cuda.is_bf16_supported": lambda **_: True,
        "torch.cuda.mem_get_info": lambda *_: (2**35, 2**36),
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch._subclasses.fake_tensor.init_gpu_context": lambda *_: None,
        "torch.Tensor.numpy": numpy,
        "torch._subclasses.fake_tensor.FakeTensor.tolist": tolist,
    }
    with contextlib.ExitStack() as stack:
        for name, replacement in patches.items():
            stack.enter_context(mock.patch(name, replacement))
        stack.enter_context(fake)
        stack.enter_context(syncs)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the others ask what kind of GPU there is
        # The pretended device has no threads of its own for the backward pass.
        stack.enter_context(torch.autograd.set_multithreading_enabled(mode=False))
        yield syncs
