"""Cores and memory: those of the container, by affinity and both versions of control groups."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from refiner_cli import machine

GIB = 2**30


def write(root: Path, **files: str) -> Path:
    """A file system with these files; ``__`` in a name stands for a slash, ``_D_`` for a dot."""
    for name, text in files.items():
        file = root / name.replace("__", "/").replace("_D_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


MEMINFO = "MemTotal: 67108864 kB\nMemAvailable: 33554432 kB\n"  # 32 GiB free


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"sys__fs__cgroup__cpu_D_max": "max 100000"}, 8),
        ({"sys__fs__cgroup__cpu_D_max": "250000 100000"}, 3),
        ({"sys__fs__cgroup__cpu_D_max": "50000 100000"}, 1),
        ({"sys__fs__cgroup__cpu_D_max": "6400000 100000"}, 8),  # more than there are
        ({"sys__fs__cgroup__cpu_D_max": "rubbish"}, 8),
        (  # the limit of a group above
            {
                "proc__self__cgroup": "0::/pod/app",
                "sys__fs__cgroup__pod__cpu_D_max": "200000 100000",
                "sys__fs__cgroup__pod__app__cpu_D_max": "max 100000",
            },
            2,
        ),
        (
            {
                "sys__fs__cgroup__cpu__cpu_D_cfs_quota_us": "150000",
                "sys__fs__cgroup__cpu__cpu_D_cfs_period_us": "100000",
            },
            2,
        ),
        (
            {
                "sys__fs__cgroup__cpu__cpu_D_cfs_quota_us": "-1",
                "sys__fs__cgroup__cpu__cpu_D_cfs_period_us": "100000",
            },
            8,
        ),
        (
            {
                "proc__self__cgroup": "4:cpu,cpuacct:/docker/1",
                "sys__fs__cgroup__cpu,cpuacct__docker__1__cpu_D_cfs_quota_us": "400000",
                "sys__fs__cgroup__cpu,cpuacct__docker__1__cpu_D_cfs_period_us": "100000",
            },
            4,
        ),
    ],
)
def test_cores_are_those_of_the_container(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    assert machine.cores(write(tmp_path, **files)) == cores


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 32 * GIB),
        ({"sys__fs__cgroup__memory_D_max": "max", "sys__fs__cgroup__memory_D_current": "5"}, 32 * GIB),
        (
            {
                "sys__fs__cgroup__memory_D_max": f"{4 * GIB}",
                "sys__fs__cgroup__memory_D_current": f"{3 * GIB}",
                "sys__fs__cgroup__memory_D_stat": f"anon 1\ninactive_file {GIB}\n",
            },
            2 * GIB,  # a file cache is given back
        ),
        (
            {"sys__fs__cgroup__memory_D_max": "1000", "sys__fs__cgroup__memory_D_current": "2000"},
            0,
        ),
        (
            {
                "proc__self__cgroup": "3:memory:/docker/1",
                "sys__fs__cgroup__memory__docker__1__memory_D_limit_in_bytes": f"{2 * GIB}",
                "sys__fs__cgroup__memory__docker__1__memory_D_usage_in_bytes": f"{GIB}",
                "sys__fs__cgroup__memory__memory_D_limit_in_bytes": "9223372036854771712",
                "sys__fs__cgroup__memory__memory_D_usage_in_bytes": f"{50 * GIB}",
            },
            GIB,
        ),
    ],
)
def test_memory_is_that_of_the_container(tmp_path: Path, files: dict[str, str], free: int) -> None:
    assert machine.available_memory(write(tmp_path, proc__meminfo=MEMINFO, **files)) == free


def test_a_system_that_says_nothing_has_some_memory_and_a_core(tmp_path: Path) -> None:
    assert machine.available_memory(tmp_path) > 0
    assert machine.cores(tmp_path) == 8


def test_semaphores_that_cannot_be_made_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.semaphores_work()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(multiprocessing.get_context("spawn"), "Lock", refuse)
    assert not machine.semaphores_work()


def test_shared_memory_is_measured(tmp_path: Path) -> None:
    free = machine.shared_memory(tmp_path)
    assert free is not None
    assert free > 0
    assert machine.shared_memory(tmp_path / "none") is None
