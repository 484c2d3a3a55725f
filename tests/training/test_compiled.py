"""Compiling is an option that says why it is not used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from refiner_cli.training import compiled
from refiner_cli.training.compiled import reason_against_compiling
from tests.conftest import Cli


def test_compiling_needs_a_gpu_and_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    assert reason_against_compiling(torch.device("cuda")) == "the package triton is missing"
    monkeypatch.setattr(compiled, "find_spec", lambda name: name)
    assert reason_against_compiling(torch.device("cuda")) == ""
    assert "on the device cpu" in reason_against_compiling(torch.device("cpu"))


def test_the_log_says_why_nothing_was_compiled(cli: Cli, small_demo: Path, tmp_path: Path) -> None:
    done = cli("train", small_demo, "--compile", "--backbone", "tiny", "--method", "csp", "--device", "cpu",
               "--set", "train.max_steps=1", "--out", tmp_path / "run")  # fmt: skip
    assert done.code == 0, done.err
    assert "not compiled: on the device cpu it takes longer than it saves" in done.err
