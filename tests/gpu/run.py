"""Everything to find out when a GPU is there, within ten minutes: one JSON object on stdout.

``python -m tests.gpu.run``: the checks of ``tests/gpu/checks.py``, then ``refiner bench`` with ViT-L/14 at
the sizes of the three benchmarks. ``--device cpu --reduced`` does a little of it, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch

from tests.conftest import ROOT
from tests.gpu.checks import CHECKS

MINUTES = 9.5
CHECKS_SHARE = 0.4  # of the time, at most; the rest is the benchmarks'
SPACES = ("mit-states", "ut-zappos", "c-gqa")


def print_checks(device: torch.device) -> None:
    """Run every check and print a JSON line about each as soon as it ends."""
    for name, check in CHECKS.items():
        began = time.monotonic()
        print(name, file=sys.stderr, flush=True)
        try:
            row: dict[str, Any] = {"name": name, "ok": True, "found": check(device)}
        except Exception as error:  # noqa: BLE001 - whatever fails is a result
            row = {"name": name, "ok": False, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(row | {"seconds": round(time.monotonic() - began, 1)}), flush=True)


def run_checks(device: str, seconds: float) -> list[dict[str, Any]]:
    """The checks in a process of their own: one that hangs or crashes costs those behind it, no more."""
    command = [sys.executable, "-m", "tests.gpu.run", "--checks", "--device", device]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as lines:
        try:
            subprocess.run(command, cwd=ROOT, stdout=lines, check=False, timeout=seconds)
            why = "the process of the checks ended"
        except subprocess.TimeoutExpired:
            why = "no time was left"
        lines.seek(0)
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]
    missing = [name for name in CHECKS if name not in {row["name"] for row in found}]
    return found + [{"name": name, "ok": False, "error": why} for name in missing]


def run_bench(device: str, space: str, seconds: float, *, reduced: bool) -> dict[str, Any]:
    """``refiner bench`` of one label space, in a process of its own that is given so many seconds."""
    parts = ["train"] if reduced else ["text", "train", "encode", "decode", "predict"]
    size = ["--backbone", "tiny", "--set", "train.batch_size=2", "--rounds", "1"]
    command = [
        sys.executable,
        "-m",
        "refiner_cli",
        "bench",
        *parts,
        "--spaces",
        space,
        "--json",
        "--device",
        device,
    ]
    command += (
        size if reduced else ["--backbone", "ViT-L-14", "--set", "train.batch_size=64", "--limit", "64"]
    )
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=max(1.0, seconds)
        )
    except subprocess.TimeoutExpired:
        return {"space": space, "error": "no time was left"}
    if done.returncode:
        return {"space": space, "error": done.stderr[-500:]}
    try:
        return {"space": space, **json.loads(done.stdout)}
    except ValueError:
        return {"space": space, "error": f"no JSON: {done.stdout[-500:]}"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--reduced", action="store_true", help="the tiny backbone and one benchmark")
    parser.add_argument("--checks", action="store_true", help="the checks alone, a JSON line each")
    given = parser.parse_args(arguments)
    device, end = torch.device(given.device), time.monotonic() + 60 * MINUTES
    if given.checks:
        print_checks(device)
        return 0
    checks, bench = run_checks(given.device, 60 * MINUTES * CHECKS_SHARE), []
    spaces = SPACES[1:2] if given.reduced else SPACES
    for number, space in enumerate(spaces):
        print(f"bench {space}", file=sys.stderr, flush=True)
        share = (end - time.monotonic()) / (len(spaces) - number)
        bench.append(run_bench(given.device, space, share, reduced=given.reduced))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    report = {"schema": "refiner.gpu-checks/1", "device": name, "torch": torch.__version__,
              "checks": checks, "bench": bench}  # fmt: skip
    print(json.dumps(report, indent=2))
    return 0 if all(check["ok"] for check in checks) and not any("error" in run for run in bench) else 1


if __name__ == "__main__":
    sys.exit(main())
