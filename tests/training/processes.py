"""Trainings as real processes, for the tests that interrupt or join them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

SETTINGS = ("--backbone", "tiny", "--set", "train.lr=2e-3", "--set", "model.adapter_blocks=1")
TIMES = {"seconds", "waited", "waiting"}


def begin(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Start ``refiner train`` with these arguments."""
    return subprocess.Popen(
        [sys.executable, "-m", "refiner_cli", "train", *map(str, arguments)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


def begin_ranks(size: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """Start the processes of one training, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [begin(*arguments, **common, **rank) for rank in ranks]


def rows(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without their times."""
    file = run / "metrics.jsonl"
    whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in whole]


def steps(run: Path) -> int:
    """Steps in metrics.jsonl so far."""
    file = run / "metrics.jsonl"
    return file.read_text().count('"kind": "step"') if file.exists() else 0


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that a process does; if it ends before, say with which words."""
    while not ready():
        if process.poll() is not None:
            raise AssertionError(process.communicate())
        time.sleep(0.01)
