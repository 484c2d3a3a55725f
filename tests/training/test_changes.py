"""What a resumed training takes over, what contradicts it, and images that it does without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from refiner_cli.training.run_dir import Run
from tests.conftest import Cli

SMALL = ("--backbone", "tiny", "--batch-size", 64, "--workers", 0, "--epochs", 1, "--lr", 0.0005,
         "--set", "train.augment=published", "--set", "train.max_steps=0",
         "--set", "calibration.tta_shifts=4")  # fmt: skip


@pytest.fixture(scope="module")
def finished(small_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch."""
    from refiner_cli.__main__ import main

    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(SystemExit) as left:
        main(["-q", "train", str(small_demo), "--out", str(folder), *map(str, SMALL)])
    assert not left.value.code
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def weights(run: Path) -> bytes:
    newest = sorted((run / "checkpoints").iterdir())[-1]
    return (newest / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--lr", 0.1], ("--lr", "train.lr", "0.1", "0.0005")),
        (["--set", "train.batch_size=3"], ("--set", "train.batch_size", "3", "64")),
        (["--method", "clip"], ("--method", "'clip'", "'refiner'")),
        (["--backbone", "ViT-B-32"], ("--backbone", "'ViT-B-32'", "'tiny'")),
        (["--seed", 4], ("--seed", "4", "0")),
        (["--seeds", 3], ("--seeds",)),
        (["--config", "other.toml"], ("other.toml", "train.augment", "none", "published")),
        (["--set", "train.max_steps=7"], ("--set", "train.max_steps", "7")),
    ],
)
def test_a_setting_that_contradicts_the_run_is_named_with_it(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[object], named: object
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.toml").write_text('[train]\naugment = "none"\n')
    before = (run / "run.json").read_bytes()
    outcome = cli("train", "--resume", "--out", run, *options)
    assert outcome.code == 2
    assert isinstance(named, tuple)
    assert all(text in outcome.err for text in (*named, str(run))), outcome.err
    assert (run / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        ("--set", "calibration.tta_shifts=3"),
        ("--set", "calibration.folds=1"),
        ("--workers", -5),
        ("--device", "abacus"),
        ("--device", "cuda:99"),
    ],
)
def test_a_value_that_is_not_valid_is_named_and_not_kept(
    cli: Cli, run: Path, options: tuple[object, ...]
) -> None:
    before = (run / "run.json").read_bytes()
    outcome = cli("train", "--resume", "--out", run, *options)
    assert outcome.code == (6 if "cuda:99" in options else 2)
    assert str(options[1]).rpartition("=")[2] in outcome.err
    assert (run / "run.json").read_bytes() == before


def test_settings_that_agree_or_change_no_result_are_taken_over(cli: Cli, run: Path) -> None:
    agreeing = ["--method", "refiner", "--epochs", 1, "--set", "train.checkpoint_minutes=3", "--seed", 0]
    agreeing += ["--set", "calibration.tta_shifts=[4]"]
    assert cli("-q", "train", "--resume", "--out", run, *agreeing).code == 0
    now = Run.open(run)
    assert now.config.train.checkpoint_minutes == 3
    assert now.changes == ({"after_step": now.newest_step(), "train.checkpoint_minutes": [10.0, 3]},)


def test_other_data_are_refused_and_both_are_named(
    cli: Cli, run: Path, tmp_path: Path, small_demo: Path
) -> None:
    other = shutil.copytree(small_demo, tmp_path / "other")
    pairs = other / "compositional-split-natural" / "val_pairs.txt"
    pairs.write_text("\n".join(pairs.read_text().splitlines()[:-1]) + "\n")
    outcome = cli("train", "--resume", "--out", run, "--dataset", other)
    assert outcome.code == 3
    assert str(other) in outcome.err
    assert str(small_demo) in outcome.err
    assert cli("train", small_demo, "--resume", "--out", run, "--dataset", small_demo).code == 2


def test_a_finished_run_gets_more_epochs_and_resumes_exactly(cli: Cli, run: Path, tmp_path: Path) -> None:
    twin = shutil.copytree(run, tmp_path / "twin")
    first = Run.open(run).newest_step()
    extended = cli("-q", "train", "--resume", "--out", run, "--epochs", 3, "--json")
    assert (extended.code, extended.json["step"]) == (0, 3 * first)
    now = Run.open(run)
    assert now.config.train.epochs == 3
    assert now.changes == ({"after_step": first, "train.epochs": [1, 3]},)
    for epochs in (None, 3):  # killed once on the way: only what its first part saved is left
        parts = ["--epochs", epochs] if epochs else ["--epochs", 3]
        assert cli("-q", "train", "--resume", "--out", twin, *parts).code == 0
        newest = sorted((twin / "checkpoints").iterdir())[-1]
        if epochs is None:
            shutil.rmtree(newest)
    assert weights(twin) == weights(run)
    steps = [json.loads(line)["step"] for line in (twin / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_only_a_finished_run_is_extended(cli: Cli, run: Path) -> None:
    fewer = cli("train", "--resume", "--out", run, "--set", "train.epochs=0")
    assert fewer.code in {2, 3}
    assert cli("-q", "train", "--resume", "--out", run, "--epochs", 2).code == 0
    less = cli("train", "--resume", "--out", run, "--epochs", 1)
    assert less.code == 2
    assert "less than the 2 epochs" in less.err
    newest = sorted((run / "checkpoints").iterdir())[-1]
    shutil.rmtree(newest)
    early = cli("train", "--resume", "--out", run, "--epochs", 5)
    assert early.code == 2
    assert "is not finished" in early.err


def test_unreadable_images_are_named_and_done_without_only_where_asked(
    cli: Cli, small_demo: Path, tmp_path: Path
) -> None:
    data, run = shutil.copytree(small_demo, tmp_path / "data"), tmp_path / "run"
    from refiner_cli.data.benchmark import load_benchmark

    benchmark = load_benchmark(data)
    bad = [benchmark.samples["train"][0].path, benchmark.samples["val"][0].path]
    for path in bad:
        (data / "images" / path).write_bytes(b"nothing")
    asked = ["train", data, "--out", run, *SMALL]
    failed = cli(*asked)
    assert failed.code == 3
    assert "--on-error skip" in failed.err
    assert not run.exists()
    outcome = cli(*asked, "--on-error", "skip", "--json")
    assert outcome.code == 5
    assert outcome.json["skipped_images"] == bad == list(Run.open(run).skipped)
    assert all(f"skipped: {path}" in outcome.err for path in bad)
    again = cli("-q", "train", "--resume", "--out", run, "--epochs", 2, "--json")
    assert (again.code, again.json["skipped_images"]) == (5, bad)
    assert cli("train", "--resume", "--out", run, "--on-error", "skip").code == 2


def test_a_dry_run_says_what_would_happen_and_writes_nothing(
    cli: Cli, small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    asked = ["train", small_demo, "--dry-run", "--backbone", "tiny", "--epochs", 3, "--batch-size", 16]
    asked += ["--set", "train.max_steps=0", "--set", "train.eval_every=1"]
    asked += ["--set", "train.val_per_epoch=2"]
    plan = cli(*asked, "--json").json
    assert plan["settings"]["train.epochs"] == [3, "--epochs"]
    assert plan["steps"] == 3 * plan["steps_per_epoch"]
    assert plan["steps_per_epoch"] == -(-plan["images"] // 16)
    assert plan["validations"] == 1 + 2 * 3
    assert any("device" in line for line in plan["machine"])
    text = cli(*asked, "--set", "train.max_steps=2", "--set", "train.cached_views=1").out
    assert plan["criterion"] == "AUC"
    assert (
        "the best checkpoint by the validation loss is kept"
        in cli(*asked, "--set", "train.selection=loss").out
    )
    assert "train.weight_decay" not in text
    assert "2 in all (train.max_steps ends it before 3 epochs)" in text
    assert "kept in the run" in text
    assert cli("train", small_demo, "--dry-run", "--backbone", "tiny", "--device", "cuda:99").code == 6
    assert cli("train", "demo", "--dry-run", "--backbone", "tiny").code == 3
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_downloads_no_weights(cli: Cli, small_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("refiner_cli.core.towers.weights.download_weights", refuse)
    plan = cli("train", small_demo, "--dry-run", "--backbone", "RN50", "--json")
    if plan.code == 0:
        assert any("are downloaded" in line for line in plan.json["machine"])
    else:
        assert plan.code == 3
