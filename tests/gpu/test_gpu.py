"""The checks on a GPU (``pytest -m gpu``); on the CPU, that the script which runs them all works."""

from __future__ import annotations

import json

import pytest
import torch

from tests.gpu.checks import CHECKS
from tests.gpu.run import main

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("name", CHECKS)
def test_on_the_gpu(name: str) -> None:
    CHECKS[name](torch.device("cuda"))


def test_the_script_runs_in_its_reduced_form(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--device", "cpu", "--reduced"])
    report = json.loads(capsys.readouterr().out)
    assert code == 0, report
    assert report["schema"] == "refiner.gpu-checks/1"
    assert {check["name"] for check in report["checks"]} == set(CHECKS)
    assert {run["space"] for run in report["bench"]} == {"ut-zappos"}
    assert report["bench"][0]["results"]
