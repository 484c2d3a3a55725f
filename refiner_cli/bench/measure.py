"""Time and memory, in one process: the jobs that are compared take turns, round by round."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class BenchResult:
    """One figure, and how many times better it is than the named baseline of the same run."""

    name: str
    value: float
    unit: str
    baseline: str | None = None
    ratio: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def synchronize(device: torch.device) -> None:
    """Wait for the device to finish; its calls return before the work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def median_seconds(
    jobs: Mapping[str, Callable[[], object]], device: torch.device, *, rounds: int
) -> dict[str, float]:
    """Median seconds of each job over the rounds, after one untimed call of each."""
    for job in jobs.values():
        job()
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            synchronize(device)
            began = time.perf_counter()
            job()
            synchronize(device)
            taken[name].append(time.perf_counter() - began)
    return {name: median(values) for name, values in taken.items()}


class Peak:
    """Peak memory since construction: tensors on CUDA, else resident memory of this process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:  # Linux can reset the peak; elsewhere it is that of the process since its start
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", "ascii")

    def read(self) -> int | None:
        """Bytes; None where the system does not report it (Windows)."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        if sys.platform == "win32":
            return None
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
