"""Folders of several seeds as models, score files of models, lists of runs."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from refiner_cli.files import write_json
from refiner_cli.training.run_dir import CALIBRATION
from refiner_cli.training.seeds import SEEDS_FILE, SEEDS_FORMAT
from refiner_cli.training.trainer import StopRequestedError
from tests.conftest import SMALL_RUN_SETTINGS, Cli

FEW = ("--bootstrap-samples", 2)


@pytest.fixture
def seeds(small_run: Path, tmp_path: Path) -> Path:
    """A folder of two seeds; the second did better on validation, and a third has not begun."""
    folder = tmp_path / "three"
    for seed in (0, 1):
        run = folder / f"seed-{seed}"
        shutil.copytree(small_run, run)
        for name, change in (("run.json", {"config": {"seed": seed}}), ("best.json", {"value": 10.0 * seed})):
            content = json.loads((run / name).read_text())
            for key, value in change.items():
                content[key] = {**content[key], **value} if isinstance(value, dict) else value
            write_json(run / name, content)
    write_json(folder / SEEDS_FILE, {"format": SEEDS_FORMAT, "seeds": [0, 1, 2]})
    return folder


def test_every_seed_is_evaluated_with_mean_and_deviation(cli: Cli, seeds: Path) -> None:
    found = cli("eval", seeds, "--world", "closed", "--json", *FEW).json
    assert found["schema"] == "refiner.eval-seeds/1"
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    auc = found["runs"][0]["worlds"]["closed"]["AUC"]
    assert found["seeds"]["closed"]["AUC"] == {"mean": auc, "sd": 0.0}
    shown = cli("eval", seeds, "--world", "closed", *FEW)
    assert [line.split()[0] for line in shown.out.splitlines()[2:]] == ["0", "1", "mean", "sd"]
    assert f"left out of {seeds}: seed 2 (not begun); finish" in shown.err
    assert "is a folder of seeds" in cli("info", seeds, "--html", seeds.parent / "r.html").err
    refused = cli("eval", seeds, "--report", seeds.parent / "r.html")
    assert refused.code == 2
    assert f"refiner eval {seeds / 'seed-1'}" in refused.err


def test_the_best_seed_is_taken_where_one_is_needed_and_said(
    cli: Cli, seeds: Path, small_demo: Path, tmp_path: Path
) -> None:
    photo = next((small_demo / "images").rglob("*.jpg"))
    outcome = cli("predict", seeds, photo)
    assert outcome.code == 0
    assert f"seed 1 of {seeds}, the best of 2 on validation" in outcome.err
    assert "seed 1 of" in cli("export", seeds, tmp_path / "model").err
    facts = cli("info", seeds, "--json").json
    assert (facts["kind"], facts["seeds"]) == ("seeds", [0, 1, 2])
    assert facts["taken by predict, index and export"] == str(seeds / "seed-1")
    assert facts["mean"]["AUC"] == facts["seed 0"]["AUC"]
    assert "seed-1" in cli("info", seeds).out
    shutil.rmtree(seeds / "seed-0")
    shutil.rmtree(seeds / "seed-1")
    for command in (["predict", seeds, photo], ["eval", seeds], ["info", seeds]):
        empty = cli(*command)
        assert empty.code == 3
        assert f"No training in {seeds} is finished yet." in empty.err


def interrupt(run: Path) -> None:
    """Leave a finished run as a training that was killed before its last validation."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    (run / CALIBRATION).unlink()


def test_no_mean_or_choice_takes_in_an_unfinished_seed(
    cli: Cli, seeds: Path, small_run: Path, small_demo: Path
) -> None:
    photo = next((small_demo / "images").rglob("*.jpg"))
    interrupt(seeds / "seed-1")  # better on validation than seed 0
    left_out = f"left out of {seeds}: seed 1 (interrupted), seed 2 (not begun)"
    found = cli("eval", seeds, "--world", "closed", "--json", *FEW)
    assert [run["seed"] for run in found.json["runs"]] == [0]
    assert left_out in found.err
    compared = cli("compare", small_run, seeds, "--world", "closed", "--json", *FEW)
    assert [run["run"] for run in compared.json["runs"]] == [str(small_run), str(seeds / "seed-0")]
    assert left_out in compared.err
    assert f"seed 0 of {seeds}, the best of 1 on validation" in cli("predict", seeds, photo).err
    facts = cli("info", seeds, "--json").json
    assert facts["unfinished"] == {"seed 1": "interrupted", "seed 2": "not begun"}
    assert facts["mean"]["AUC"] == facts["seed 0"]["AUC"]
    interrupt(seeds / "seed-0")
    assert cli("eval", seeds).code == 3
    run = seeds / "seed-1"
    with FileLock(run / ".lock"):
        said = cli("predict", run, photo).err
    assert f"{run} is not finished (training): its best checkpoint so far is used\n" in said


def test_a_training_without_its_calibration_is_not_finished(
    cli: Cli, small_run: Path, small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise StopRequestedError

    run = tmp_path / "run"
    with monkeypatch.context() as during:
        during.setattr("refiner_cli.training.calibration_stage.calibrate", stop)
        cli("-q", "train", small_demo, "--backbone", "tiny", "--out", run, *SMALL_RUN_SETTINGS)
    assert cli("info", run, "--json").json["state"] == "not calibrated"
    assert "not calibrated, step 3" in cli("runs", run).out
    note = f"{run} is not finished (not calibrated): its best checkpoint so far, which is not calibrated, is"
    hint = f"refiner train --resume --out {run}"
    photo = next((small_demo / "images").rglob("*.jpg"))
    closed = ("--world", "closed", *FEW)
    for command in (["eval", run, *closed], ["compare", small_run, run, *closed], ["predict", run, photo]):
        said = cli(*command).err
        assert note in said
        assert hint in said
    cli("-q", "train", "--resume", "--out", run)
    assert cli("info", run, "--json").json["state"] == "finished"
    assert "not finished" not in cli("predict", run, photo).err
    whole, resumed = (json.loads((one / CALIBRATION).read_text()) for one in (small_run, run))
    assert whole["calibration"] == resumed["calibration"]


@pytest.mark.parametrize("content", ["{", '{"schema": "refiner.calibration/1"}', None])
def test_a_calibration_counts_only_if_it_is_that_of_the_best_checkpoint(
    cli: Cli, small_run: Path, tmp_path: Path, content: str | None
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    record = json.loads((run / CALIBRATION).read_text())
    (run / CALIBRATION).write_text(content or json.dumps(record | {"checkpoint": "step-00000099"}))
    assert [one["state"] for one in cli("runs", run, "--json").json["runs"]] == ["not calibrated"]


def test_saved_scores_give_the_same_metrics_and_are_compared(
    cli: Cli, small_run: Path, seeds: Path, tmp_path: Path
) -> None:
    for world, extra in (("closed", []), ("open", ["--feasibility", "mask"])):
        file = tmp_path / f"{world}.npz"
        options = ["--world", world, *extra, *FEW, "--json"]
        model = cli("eval", small_run, "--save-scores", file, *options).json["worlds"][world]
        given = cli("eval", "--scores", file, *FEW, "--json").json["worlds"]["given"]
        for name in ("S", "U", "HM", "AUC", "state_acc", "object_acc", "n_seen", "n_unseen"):
            assert given[name] == pytest.approx(model[name], abs=1e-9), (world, name)
        assert given["top_k"] == model["top_k"]
    with np.load(tmp_path / "closed.npz") as content:
        assert content["scores"].dtype == np.float32
        assert len(content["scores"]) == len(content["truth"])
    mixed = ["compare", small_run, tmp_path / "closed.npz", *FEW]
    assert cli(*mixed).code == 2
    found = cli(*mixed, "--world", "closed", "--json").json
    assert {d["value"] for d in found["differences"][0]["worlds"]["closed"].values()} == {0}
    shutil.copy(tmp_path / "closed.npz", tmp_path / "again.npz")
    files = cli("compare", tmp_path / "closed.npz", tmp_path / "again.npz", *FEW, "--json").json
    assert list(files["runs"][0]["worlds"]) == ["given"]
    both = cli("eval", small_run, "--save-scores", tmp_path / "both.npz")
    assert (both.code, (tmp_path / "both.npz").exists()) == (2, False)


def test_a_disk_that_fails_costs_the_file_and_not_the_numbers(
    cli: Cli, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("refiner_cli.evaluation.score_writer.np.lib.format.write_array", refuse)
    outcome = cli("eval", small_run, "--world", "closed", "--save-scores", tmp_path / "s.npz", "--json", *FEW)
    assert outcome.code == 1
    assert "No space left" in outcome.err
    assert outcome.json["worlds"]["closed"]
    assert not list(tmp_path.iterdir())


def test_a_comparison_for_papers_and_sheets(cli: Cli, seeds: Path) -> None:
    command = ["compare", seeds, "--world", "closed", *FEW]
    found = cli(*command, "--json").json
    assert [run["run"] for run in found["runs"]] == [str(seeds / "seed-0"), str(seeds / "seed-1")]
    assert len(found["seeds"]) == 1
    auc = found["runs"][0]["worlds"]["closed"]["AUC"]
    rows = list(csv.DictReader(io.StringIO(cli(*command, "--format", "csv").out)))
    assert [float(row["AUC"]) for row in rows] == [auc] * 3
    assert float(rows[-1]["AUC_sd"]) == 0
    markdown = cli(*command, "--format", "markdown").out.splitlines()
    assert f": refiner compare {seeds} " in markdown[0].replace("\\_", "_")
    assert markdown[2].startswith("| run | method |")
    assert {line.count("|") for line in markdown[2:]} >= {markdown[2].count("|")}
    assert f"{auc:.1f} ± 0.0" in markdown[-1]
    latex = cli(*command, "--format", "latex").out
    assert latex.count(r" \\") == 1 + 3
    assert rf"{auc:.1f} $\pm$ 0.0" in latex
    assert "state\\_acc" in latex


def test_runs_are_listed_with_what_they_are(cli: Cli, seeds: Path, tmp_path: Path) -> None:
    run = seeds / "seed-1"
    (seeds / "broken").mkdir()
    (seeds / "broken" / "run.json").write_text("{")
    shutil.copytree(seeds / "seed-1", seeds / "half")
    (seeds / "half" / "best.json").write_text('{"checkpoint": "step-00000003"}')
    lines = (seeds / "seed-0" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (seeds / "seed-0" / "metrics.jsonl").write_text("".join(lines[:-1]))
    found = {Path(one["folder"]).name: one for one in cli("runs", tmp_path, "--json").json["runs"]}
    assert list(found) == ["broken", "half", "seed-0", "seed-1"]
    assert all(found[name]["state"].startswith("damaged") for name in ("broken", "half"))
    assert (found["seed-0"]["state"], found["seed-1"]["state"]) == ("interrupted", "finished")
    assert (found["seed-1"]["method"], found["seed-1"]["seed"]) == ("refiner", 1)
    assert found["seed-1"]["val"]["AUC"] == cli("info", run, "--json").json["validation"]["AUC"]
    with FileLock(run / ".lock"):
        assert {one["state"] for one in cli("runs", run, "--json").json["runs"]} == {"training"}
    assert found["seed-1"]["backbone"] == "tiny"
    text = cli("runs", seeds).out
    assert "interrupted, step 3" in text
    assert cli("runs", tmp_path / "none").code == 3
    (tmp_path / "empty").mkdir()
    assert "no run" in cli("runs", tmp_path / "empty").err


def test_info_of_a_run_shows_its_settings_and_state(cli: Cli, small_run: Path) -> None:
    facts = cli("info", small_run, "--json").json
    assert facts["settings"]["train.lr"] == 0.002
    assert facts["state"] == "finished"
    shown = cli("info", small_run).out
    assert re.search(r"^train\.lr +0\.002 *$", shown, re.M)
    assert re.search(r"^calibration\.hubness_strength +\[0\.5\] *$", shown, re.M)
    assert re.search(rf"^validation AUC +{facts['validation']['AUC']:.1f} *$", shown, re.M)
