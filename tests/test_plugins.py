"""Another package adds a method in one file; the commands and the configuration know it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# PromptCompVL (Xu et al., 2022): the context and the state and object vectors are learned.
BASELINE = """
from pydantic import Field

from refiner_cli.core.models.base import TextBank
from refiner_cli.core.models.baselines.clip import Clip, ClipConfig
from refiner_cli.core.models.prompts import Prompts


class PcvlConfig(ClipConfig):
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout on state and object vectors")


class Pcvl(Clip):
    Config = PcvlConfig

    def __init__(self, backbone, config, space):
        super().__init__(backbone, config, space)
        self.prompts = Prompts(
            backbone.text, space, context=config.prompt_init, dropout=config.dropout, roles=("composition",)
        )

    def encode_pairs(self, space) -> TextBank:
        return self.prompts.encode(
            space, chunk_size=self.memory.text_chunk_size, with_states=False, with_objects=False
        )
"""
BROKEN = "raise RuntimeError('it needs a license key')\n"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder as pip would fill it: two modules, and metadata with entry points."""
    site = tmp_path / "site"
    info = site / "pcvl-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "pcvl.py").write_text(BASELINE)
    (site / "broken_method.py").write_text(BROKEN)
    (site / "bare_method.py").write_text("class Bare: pass\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pcvl\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[refiner.methods]\npcvl = pcvl:Pcvl\nbroken = broken_method:X\nbare = bare_method:Bare\n"
    )
    return site


def refiner(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "refiner_cli", "-q", *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )


def test_a_method_of_another_package_trains_evaluates_and_predicts(
    outside: Path, small_demo: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    small = ("--backbone", "tiny", "--set", "train.max_steps=2", "--set", "model.dropout=0.2", "--json")
    done = refiner(outside, "train", small_demo, "--method", "pcvl", "--out", run, *small)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "run.json").read_text())["config"]["model"] == {
        "prompt_init": "a photo of", "dropout": 0.2,
    }  # fmt: skip
    assert json.loads(refiner(outside, "eval", run, "--json").stdout)["worlds"]["open"]["n_seen"] > 0
    rows = refiner(outside, "predict", run, small_demo / "images").stdout.splitlines()
    assert all(json.loads(row)["status"] == "ok" for row in rows)
    assert rows


def test_a_model_of_a_method_that_is_not_installed_is_an_error(
    outside: Path, small_demo: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    small = ("--backbone", "tiny", "--set", "train.max_steps=1")
    assert refiner(outside, "train", small_demo, "--method", "pcvl", "--out", run, *small).returncode == 0
    done = refiner(tmp_path / "nothing", "eval", run)
    assert done.returncode == 3
    assert "pcvl" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_method_whose_package_fails_is_an_error_that_names_it(outside: Path, small_demo: Path) -> None:
    done = refiner(outside, "train", small_demo, "--method", "broken", "--backbone", "tiny")
    assert done.returncode == 3
    assert "The method 'broken' of the package pcvl cannot be imported" in done.stderr
    assert "license key" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_that_fails_is_no_matter_of_other_methods(outside: Path, small_demo: Path) -> None:
    wrong = refiner(outside, "config", "--set", "model.nonsense=1")
    assert wrong.returncode == 2
    assert "--set: unknown key 'model.nonsense'" in wrong.stderr
    resumed = refiner(outside, "train", "--resume", "--out", small_demo, "--lr", 1)
    assert "is not a run" in resumed.stderr
    bare = refiner(outside, "config", "--method", "bare")
    assert bare.returncode == 3
    assert "The method 'bare' has no settings" in bare.stderr
    assert "Traceback" not in bare.stderr
