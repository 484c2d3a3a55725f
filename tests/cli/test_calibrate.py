"""``refiner calibrate``: a finished run is calibrated again; nothing else of it changes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from refiner_cli.core.model_io.checkpoint import read_config
from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.training import calibration_stage
from refiner_cli.training.folder_lock import folder_lock
from refiner_cli.training.run_dir import Run, model_folder
from tests.conftest import Cli

ONE_VIEW = ("--set", "calibration.tta_shifts=1", "--set", "calibration.state_weight=0")


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_run, tmp_path / "run"))


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_a_finished_run_is_calibrated_again(cli: Cli, run: Path, tmp_path: Path) -> None:
    before = read_config(model_folder(run))
    kept = {
        name: (model_folder(run) / name).read_bytes() for name in ("training.json", "training.safetensors")
    }
    (run / "feasibility.json").write_text("{}")
    done = cli("-q", "calibrate", run, *ONE_VIEW, "--set", "calibration.hubness_strength=[1.0]", "--json")
    assert done.code == 0, done.err
    assert not (run / "feasibility.json").exists()  # chosen with the scores before
    found, stored = done.json, read_config(model_folder(run))
    assert found["schema"] == "refiner.calibrate/1"
    assert before["calibration"]["hubness_strength"] == 0.5
    assert found["calibration"]["hubness_strength"] == 1.0
    assert stored["calibration"] == found["calibration"]
    assert stored["metrics"] == found["val"]["after"] == read(run / "best.json")["val"]
    assert read(run / "calibration.json")["candidates"] == found["candidates"]
    assert read(run / "run.json")["config"]["calibration"]["hubness_strength"] == [1.0]
    assert all((model_folder(run) / name).read_bytes() == content for name, content in kept.items())
    described = cli("info", run, "--json").json["calibration"]
    assert described == found["calibration"]
    assert cli("-q", "export", run, tmp_path / "model").code == 0
    assert read_config(tmp_path / "model")["calibration"] == found["calibration"]
    # Resuming finds nothing left to do, and the same settings find the same again.
    assert cli("-q", "train", "--resume", "--out", run, "--json").code == 0
    assert read_config(model_folder(run)) == stored
    assert cli("-q", "calibrate", run, "--json").json["calibration"] == found["calibration"]


def test_a_run_keeps_what_it_does_without_and_what_was_changed(
    cli: Cli, run: Path, small_demo: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(small_demo, tmp_path / "data")
    unreadable = load_benchmark(data).samples["val"][0].path
    (data / "images" / unreadable).write_bytes(b"torn")
    content = read(run / "run.json")
    content["skipped"], content["changes"] = [unreadable], [{"after_step": 1, "device": ["cpu", "auto"]}]
    (run / "run.json").write_text(json.dumps(content))
    before = Run.open(run)
    done = cli("-q", "calibrate", run, *ONE_VIEW, "--dataset", data, "--json")
    assert done.code == 0, done.err
    after = Run.open(run)
    assert after.config.calibration.tta_shifts == (1,)
    assert after == dataclasses.replace(before, config=after.config, changes=after.changes)
    assert after.changes[:-1] == before.changes
    assert after.changes[-1]["calibration.tta_shifts"] == [[4], [1]]
    assert after.skipped == (unreadable,)


def test_a_stage_that_was_interrupted_is_done_again(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cli("-q", "calibrate", run, *ONE_VIEW, "--json").json["calibration"]
    (run / "calibration.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(calibration_stage, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert cli("-q", "train", "--resume", "--out", run).code == 130
    assert not (run / "calibration.json").exists()
    again = cli("-q", "train", "--resume", "--out", run, "--json")
    assert again.code == 0
    assert read(run / "calibration.json")["calibration"] == whole
    assert again.json["val"] == read_config(model_folder(run))["metrics"]


def test_an_interrupted_calibration_changes_nothing_or_is_done_again(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    files = [run / name for name in ("run.json", "best.json", "calibration.json")]
    before = [file.read_bytes() for file in files]
    with monkeypatch.context() as patch:
        patch.setattr(calibration_stage, "calibrate", stop)
        assert cli("-q", "calibrate", run, *ONE_VIEW).code == 130
    assert [file.read_bytes() for file in files] == before
    with monkeypatch.context() as patch:
        patch.setattr(calibration_stage.CalibrationStage, "write_best", stop)
        assert cli("-q", "calibrate", run, *ONE_VIEW).code == 130
    assert cli("runs", run, "--json").json["runs"][0]["state"] == "not calibrated"
    assert cli("-q", "train", "--resume", "--out", run).code == 0
    assert read(run / "calibration.json")["calibration"]["tta_shifts"] == 1


def test_what_cannot_be_calibrated_is_named(cli: Cli, run: Path, small_export: Path, tmp_path: Path) -> None:
    no_run = cli("calibrate", small_export)
    assert (no_run.code, "is not a run" in no_run.err) == (3, True)
    other = cli("calibrate", run, "--set", "train.lr=1")
    assert (other.code, "'train.lr' cannot be changed after training" in other.err) == (2, True)
    with folder_lock(run):
        locked = cli("calibrate", run)
    assert (locked.code, "Another process is training in" in locked.err) == (2, True)
    gone = cli("calibrate", run, "--dataset", tmp_path / "nowhere")
    assert gone.code == 3
    (run / "calibration.json").unlink()
    unfinished = cli("calibrate", run)
    assert (unfinished.code, "is not finished" in unfinished.err) == (2, True)
    assert "train --resume --out" in unfinished.err
