"""What this process may use of the machine: cores, memory, shared memory, semaphores.

In a container these are the container's, not the host's: CPU affinity and the limits of control groups
(cgroup v2, and v1 where it is mounted) count. Knows neither torch nor numpy.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
UNKNOWN_MEMORY = 4 * 2**30  # assumed where the system does not say
NO_LIMIT = 2**60  # cgroup v1 writes a number near 2**63 where there is no limit


def cores(root: Path = ROOT) -> int:
    """CPU cores this process may use: its affinity, and at most the CPU quota of its control group."""
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for group in _groups("cpu", root) if (quota := _cpu_quota(group)) is not None]
    return max(1, min(have, *(math.ceil(quota) for quota in quotas)) if quotas else have)


def available_memory(root: Path = ROOT) -> int:
    """Bytes of main memory that can still be taken, by the system and by the limits of its control group."""
    free = [_system_memory(root)]
    for group in _groups("memory", root):
        limit = _first_number(group, "memory.max", "memory.limit_in_bytes")
        used = _first_number(group, "memory.current", "memory.usage_in_bytes")
        if limit is not None and used is not None and limit < NO_LIMIT:
            free.append(max(0, limit - (used - _reclaimable(group))))
    return min(free)


def shared_memory(folder: Path = Path("/dev/shm")) -> int | None:  # noqa: S108 - measured, not written to
    """Free bytes of shared memory between processes; None where the system does not limit it by a folder."""
    if not folder.is_dir():
        return None
    try:
        return shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0
    except OSError:
        return 0


def semaphores_work() -> bool:
    """Whether processes can share a lock. Without a writable /dev/shm they cannot, and no pool can start."""
    try:
        multiprocessing.get_context("spawn").Lock()
    except (OSError, ImportError):
        return False
    return True


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's control group and of those above it, in both versions.

    A container often sees its own group as the top of the tree, whatever path its processes are listed
    with, so the top is always among them.
    """
    tree = root / "sys/fs/cgroup"
    places = {(tree, ""), (tree / controller, ""), (tree / "unified", "")}
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text("utf-8", "replace").splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                places |= {(tree, path), (tree / "unified", path)}
            elif controller in controllers.split(","):
                places |= {(tree / controllers, path), (tree / controller, path)}
    seen: set[Path] = set()
    for top, path in places:
        below = Path(path.lstrip("/"))
        for part in (below, *below.parents):
            folder = top / part
            if folder not in seen and ".." not in part.parts and folder.is_dir():
                seen.add(folder)
                yield folder


def _cpu_quota(group: Path) -> float | None:
    """Cores that a control group may use at most; None: no limit."""
    words = _words(group / "cpu.max")
    if not words:
        words = [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]
    with contextlib.suppress(ValueError, ZeroDivisionError):
        quota, period = (int(word) for word in words)
        return quota / period if quota > 0 and period > 0 else None
    return None


def _reclaimable(group: Path) -> int:
    """Bytes of a control group's use that the system gives back when memory is short: file caches."""
    with contextlib.suppress(OSError, ValueError):
        lines = (group / "memory.stat").read_text("ascii").splitlines()
        figures = {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}
        return figures.get("total_inactive_file", figures.get("inactive_file", 0))
    return 0


def _system_memory(root: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return UNKNOWN_MEMORY


def _first_number(group: Path, *names: str) -> int | None:
    """The number in the first of these files that there is; None where it says "max"."""
    for name in names:
        words = _words(group / name)
        if words:
            return int(words[0]) if words[0].isdecimal() else None
    return None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text("ascii").split()
    except (OSError, ValueError):
        return []
