"""Shared fixtures: a small demo dataset, a small trained run, and the command line in-process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from refiner_cli.__main__ import main

if TYPE_CHECKING:
    import torch

    from refiner_cli.core.towers.backbone import Backbone

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests run side by side
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value


Cli = Callable[..., Outcome]


def parse_rows(text: str) -> list[dict[str, Any]]:
    """JSON lines, as ``predict`` and others print them."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run ``refiner`` in this process, with the command line that it would have in its own."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        words = [str(a) for a in arguments]
        with pytest.raises(SystemExit) as left, monkeypatch.context() as during:
            during.setattr("sys.argv", ["refiner", *words])
            main(words)
        streams = capsys.readouterr()
        return Outcome(int(left.value.code or 0), streams.out, streams.err)

    return run


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's caches, or another test's."""
    monkeypatch.setenv("REFINER_HOME", str(tmp_path.with_name(f"{tmp_path.name}-home")))


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo benchmark with a few images a pair."""
    from refiner_cli.demo.dataset import DemoSize, make_demo

    folder = tmp_path_factory.mktemp("data") / "demo"
    make_demo(folder, size=DemoSize(train=2, val=1, test=1))
    return folder


SMALL_RUN_SETTINGS = (
    "--set", "train.max_steps=3", "--set", "train.lr=0.002",
    "--set", "calibration.hubness_strength=0.5", "--set", "calibration.wise_ft_alpha=0.5",
)  # fmt: skip


@pytest.fixture(scope="session")
def small_run(small_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["--backbone", "tiny", "--out", str(folder), "--json", *SMALL_RUN_SETTINGS]
    with pytest.raises(SystemExit) as left:
        main(["-q", "train", str(small_demo), *arguments])
    assert not left.value.code
    return folder


@pytest.fixture(scope="session")
def small_export(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run, exported with its backbone."""
    folder = tmp_path_factory.mktemp("models") / "model"
    with pytest.raises(SystemExit) as left:
        main(["-q", "export", str(small_run), str(folder), "--json"])
    assert not left.value.code
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared real data, where it is there."""
    if not SHARED.is_dir():
        pytest.skip("the shared test data is not beside this checkout")
    return SHARED


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    """The built-in backbone, one per module."""
    from refiner_cli.core.towers.backbone import load_backbone

    return load_backbone("tiny", "built-in")


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Two noise images for it, ``2 x 3 x 96 x 96``."""
    import torch

    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
