"""Several seeds: one run each, mean and deviation, and on again after an interruption."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import pytest

from refiner_cli.training.seeds import mean_and_deviation
from tests.conftest import Cli
from tests.training.processes import SETTINGS, rows

FEW = (*SETTINGS, "--set", "train.max_steps=2", "--set", "train.batch_size=16")


def test_the_deviation_divides_by_one_less() -> None:
    found = [dict.fromkeys(("S", "U", "HM", "AUC"), value) for value in (1.0, 3.0)]
    assert mean_and_deviation(found)["mean"]["AUC"] == 2
    assert mean_and_deviation(found)["deviation"]["AUC"] == pytest.approx(2**0.5)
    assert mean_and_deviation(found[:1])["deviation"]["AUC"] is None


def test_seeds_print_mean_and_deviation_and_each_equals_its_own_run(
    cli: Cli, small_demo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    done = cli("train", small_demo, "--out", out, "--seeds", 2, "--seed", 5, *FEW)
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()[2:]] == ["5", "6", "mean", "deviation", "runs"]
    summary = json.loads((out / "seeds.json").read_text())
    best = [json.loads((out / f"seed-{seed}" / "best.json").read_text())["val"]["AUC"] for seed in (5, 6)]
    assert summary["mean"]["AUC"] == pytest.approx(statistics.fmean(best))
    assert cli("-q", "train", small_demo, "--out", tmp_path / "six", "--seed", 6, *FEW).code == 0
    assert rows(out / "seed-6") == rows(tmp_path / "six")

    shutil.rmtree(out / "seed-6")  # as if it had not begun
    again = cli("-q", "train", "--resume", "--out", out, "--json")
    assert again.json["schema"] == "refiner.train-seeds/1"
    assert again.json["mean"] == summary["mean"]


UNBEGUN = json.dumps({"format": "refiner.seeds/1", "seeds": [0, 1]})


@pytest.mark.parametrize(("content", "begun"), [("{}", False), (UNBEGUN, True)])
def test_a_folder_of_seeds_is_not_overwritten(
    cli: Cli, small_demo: Path, small_run: Path, tmp_path: Path, content: str, begun: bool
) -> None:
    (tmp_path / "seeds.json").write_text(content)
    if begun:
        shutil.copytree(small_run, tmp_path / "seed-1")
    outcome = cli("train", small_demo, "--out", tmp_path, "--seeds", 2, *FEW)
    assert outcome.code == 2
    assert "exists already" in outcome.err


def test_seeds_that_were_killed_before_the_first_run_start_again(
    cli: Cli, small_demo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    (out / "seed-0" / "init").mkdir(parents=True)
    (out / "seed-0" / "environment.json").write_text("{}")
    (out / "seeds.json").write_text(UNBEGUN)
    resumed = cli("train", "--resume", "--out", out)
    assert resumed.code == 3
    assert f"No training in {out} has begun." in resumed.err
    clip = ("--backbone", "tiny", "--method", "clip", "--set", "calibration.tta_shifts=1")
    started = cli("-q", "train", small_demo, "--out", out, "--seeds", 2, *clip, "--json")
    assert started.code == 0, started.err
    shutil.rmtree(out / "seed-0")  # the second one has the settings, too
    again = cli("-q", "train", "--resume", "--out", out, "--json")
    assert [run["val"] for run in again.json["runs"]] == [run["val"] for run in started.json["runs"]]
