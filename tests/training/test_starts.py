"""Starting and resuming from the command line: failed starts, moved datasets, sizes without sense."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from refiner_cli.training.run_dir import Run
from tests.conftest import Cli
from tests.training.processes import SETTINGS

ONE_STEP = (*SETTINGS, "--set", "train.max_steps=1", "--set", "train.batch_size=16")


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (("--backbone", "ViT-B-32", "--pretrained", "opneai"), 3),
        (("--backbone", "no-such-model"), 3),
        (("--backbone", "tiny", "--device", "cuda:99"), 6),
        (("--backbone", "tiny", "--device", "abacus"), 2),
        (("--backbone", "tiny", "--seed", "99999999999999999999"), 2),
        (("--backbone", "tiny", "--lr", "1e38"), 2),
        (("--backbone", "tiny", "--lr", "inf"), 2),
        (("--backbone", "tiny", "--method", "clip", "--set", "train.cached_views=1"), 3),
    ],
)
def test_a_failed_start_leaves_nothing_in_the_way(
    cli: Cli, small_demo: Path, tmp_path: Path, wrong: tuple[str, ...], code: int
) -> None:
    run = tmp_path / "run"
    outcome = cli("train", small_demo, "--out", run, "--set", "train.max_steps=1", *wrong)
    assert outcome.code == code, outcome.err
    assert len([line for line in outcome.err.splitlines() if line.startswith("Error")]) == 1
    assert "Traceback" not in outcome.err
    assert not run.exists()


def test_a_failed_start_of_several_seeds_leaves_nothing_in_the_way(
    cli: Cli, small_demo: Path, tmp_path: Path
) -> None:
    wrong = ("--backbone", "tiny", "--device", "cuda:99")
    assert cli("train", small_demo, "--out", tmp_path / "runs", "--seeds", 2, *wrong).code == 6
    assert not (tmp_path / "runs").exists()
    last = 2**63 - 1
    outcome = cli("train", small_demo, "--out", tmp_path / "runs", "--seeds", 2, "--seed", last, *ONE_STEP)
    assert outcome.code == 2
    assert "exceed" in outcome.err


def test_a_dataset_that_moved_is_found_by_its_fingerprint(cli: Cli, small_demo: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(small_demo, data)
    assert cli("-q", "train", data, "--out", run, *ONE_STEP).code == 0
    data.rename(tmp_path / "moved")
    run.rename(tmp_path / "moved-run")
    lost = cli("train", "--resume", "--out", tmp_path / "moved-run")
    assert lost.code == 3
    assert "is no longer at" in lost.err
    assert "refiner train --resume --out" in lost.err
    found = cli("train", "--resume", "--out", tmp_path / "moved-run", "--dataset", tmp_path / "moved")
    assert found.code == 0, found.err
    places = [str((tmp_path / name).resolve()) for name in ("data", "moved")]
    now = Run.open(tmp_path / "moved-run")
    assert now.dataset.path == places[1]
    assert now.changes == ({"after_step": 1, "dataset": places},)
    assert cli("-q", "train", "--resume", "--out", tmp_path / "moved-run").code == 0

    pairs = tmp_path / "moved" / "compositional-split-natural" / "val_pairs.txt"
    pairs.write_text("\n".join(pairs.read_text().splitlines()[:-1]) + "\n")
    other = cli("train", tmp_path / "moved", "--resume", "--out", tmp_path / "moved-run")
    assert other.code == 3
    assert "has changed since" in other.err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8_train_resume_and_export(cli: Cli, small_demo: Path, tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"d\xff")
    shutil.copytree(small_demo, place / os.fsdecode(b"data\xff"))
    run = place / os.fsdecode(b"run\xff")
    assert cli("-q", "train", place / os.fsdecode(b"data\xff"), "--out", run, *ONE_STEP).code == 0
    resumed = cli("-q", "train", "--resume", "--out", run)
    assert resumed.code == 0, resumed.err
    exported = cli("-q", "export", run, place / "model")
    assert exported.code == 0, exported.err
    assert cli("-q", "info", place / "model").code == 0
