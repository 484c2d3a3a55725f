"""Every method on a pretended GPU in bf16 and fp16: no device is mixed, and a step waits for it once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from refiner_cli.plugins import BUILT_IN_METHODS
from tests.conftest import ROOT
from tests.core.fake_cuda import COMPILER, driver_environment

WHY_NOT = (
    "PyTorch is built without CUDA"
    if torch.version.cuda is None
    else "there is no C compiler for the pretended driver"
    if sys.platform != "linux" or COMPILER is None
    else ""
)


@pytest.fixture
def pretended_driver(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that finds a CUDA driver."""
    if torch.cuda.is_available():
        return {}
    return driver_environment(tmp_path)


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_every_method_stays_on_the_device_and_a_step_waits_once(
    pretended_driver: dict[str, str], small_demo: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.core.check_fake_cuda", str(small_demo)],
        cwd=ROOT, env=os.environ | pretended_driver, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    waits = json.loads(done.stdout.splitlines()[-1])
    # The scaler of fp16 reads once more whether the gradients were finite.
    once, twice = {"tolist": 1}, {"tolist": 1, "item": 1}
    assert waits == {
        f"{method} {precision}": once if precision == "bf16" else twice
        for method in BUILT_IN_METHODS
        if method != "clip"
        for precision in ("bf16", "fp16")
    }
