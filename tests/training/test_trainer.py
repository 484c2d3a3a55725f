"""Training: exact resume, honest selection, errors that name their place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from refiner_cli.core.model_io.checkpoint import read_model, read_tensors
from refiner_cli.core.towers import tiny
from refiner_cli.data.benchmark import Benchmark, load_benchmark
from refiner_cli.errors import ConfigError, DatasetError, ModelFileError
from refiner_cli.settings import resolve
from refiner_cli.training.events import CalibrationDone, StepDone, Stopped, Validated
from refiner_cli.training.run_dir import DatasetRef, Run, model_folder
from refiner_cli.training.setup import build_trainer, resume_trainer
from refiner_cli.training.trainer import Trainer

SETTINGS = {
    "backbone": "tiny",
    "train.epochs": 2,
    "train.batch_size": 48,
    "train.lr": 2e-3,
    "model.adapter_blocks": 1,
}


@pytest.fixture(scope="module")
def benchmark(small_demo: Path) -> Benchmark:
    return load_benchmark(small_demo)


def begin(folder: Path, benchmark: Benchmark, **more: object) -> Trainer:
    config = resolve([("test", more)], ("defaults", SETTINGS))
    ref = DatasetRef(benchmark.name, str(benchmark.root), benchmark.fingerprint())
    return build_trainer(Run.create(folder, config, ref, {}), benchmark, lambda line: None)


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in run.metrics() if row["kind"] == "step"]


def test_a_stopped_and_resumed_training_equals_an_uninterrupted_one(
    tmp_path: Path, benchmark: Benchmark
) -> None:
    whole = begin(tmp_path / "whole", benchmark)
    list(whole.fit())
    assert whole.total == 6

    first = begin(tmp_path / "parts", benchmark)
    events = list(first.fit(stop=lambda: first.step == 1))  # in the middle of the first epoch
    assert isinstance(events[-1], Stopped)
    second = resume_trainer(first.run, benchmark, lambda line: None)
    assert second.step == 2
    list(second.fit())

    assert losses(whole.run) == losses(second.run)
    ours, theirs = (read_tensors(run.run.checkpoints()[-1]) for run in (whole, second))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_after_damage_the_best_is_still_chosen_by_the_validation_loss(
    tmp_path: Path, benchmark: Benchmark
) -> None:
    worse = {"train.selection": "loss", "train.max_steps": 1, "train.lr": 1.0}
    training = begin(tmp_path / "run", benchmark, **worse)
    records = []
    for event in training.fit():
        if isinstance(event, Validated):
            records.append(training.progress.validation)
            if event.step:
                break
    assert training.run.read_best() == records[0]
    (training.run.checkpoint(0) / "model.safetensors").unlink()
    assert resume_trainer(training.run, benchmark, lambda line: None).progress.best == records[1]
    assert [record["criterion"] for record in records if record] == ["validation loss"] * 2


def test_a_training_does_not_go_on_with_other_weights_of_its_backbone(
    tmp_path: Path, benchmark: Benchmark
) -> None:
    weights = tmp_path / "weights.safetensors"
    shutil.copy(tiny.weights_path(), weights)
    training = begin(tmp_path / "run", benchmark, pretrained=str(weights))
    list(training.fit(stop=lambda: training.step == 1))
    state = load_file(weights)
    save_file({name: v * 1.5 if v.is_floating_point() else v for name, v in state.items()}, weights)
    with pytest.raises(ModelFileError, match="is not the one that"):
        resume_trainer(training.run, benchmark, lambda line: None)
    shutil.copy(tiny.weights_path(), weights)
    assert resume_trainer(training.run, benchmark, lambda line: None).step == training.step


def test_what_an_interruption_left_behind_is_dropped(tmp_path: Path, benchmark: Benchmark) -> None:
    training = begin(tmp_path / "run", benchmark)
    list(training.fit(stop=lambda: training.step == 1))
    # Written, then killed before the checkpoint; and killed while writing one.
    training.run.append_metrics({"kind": "step", "step": 3, "loss": 0.0})
    torn = tmp_path / "run" / "checkpoints" / ".step-00000003.0123abcd.tmp"
    torn.mkdir()
    again = resume_trainer(training.run, benchmark, lambda line: None)
    list(again.fit(stop=lambda: True))
    lines = [row for row in again.run.metrics() if row["kind"] == "step"]
    assert [row["step"] for row in lines] == [1, 2, 3]
    assert lines[-1]["loss"] > 0
    assert not torn.exists()


def test_the_best_checkpoint_is_chosen_by_validation_and_kept(tmp_path: Path, benchmark: Benchmark) -> None:
    training = begin(tmp_path / "run", benchmark)
    events = list(training.fit())
    validated = [event for event in events if isinstance(event, Validated)]
    best = max(validated, key=lambda event: event.metrics.AUC)
    assert model_folder(tmp_path / "run").name == f"step-{best.step:08d}"
    assert len(training.run.checkpoints()) <= 3
    model, info = read_model(model_folder(tmp_path / "run"))
    assert info.step == best.step
    done = events[-1]
    assert isinstance(done, CalibrationDone)
    assert done.checkpoint == model_folder(tmp_path / "run").name
    assert model.calibration.to_json() == done.calibration
    assert info.metrics == done.after


def test_validation_after_every_so_many_epochs_and_at_the_end(tmp_path: Path, benchmark: Benchmark) -> None:
    settings = {"train.epochs": 3, "train.batch_size": 144, "train.eval_every": 2}
    training = begin(tmp_path / "run", benchmark, **settings)
    events = list(training.fit(stop=lambda: training.step == 1))
    assert training.schedule.steps_per_epoch == 1
    again = resume_trainer(training.run, benchmark, lambda line: None)
    events += again.fit()
    assert [event.epoch for event in events if isinstance(event, Validated)] == [0, 2, 3]


def test_validation_several_times_an_epoch_changes_no_step_and_survives_a_stop(
    tmp_path: Path, benchmark: Benchmark
) -> None:
    settings = {"train.val_per_epoch": 3, "train.batch_size": 36}
    plain = begin(tmp_path / "plain", benchmark, **settings | {"train.val_per_epoch": 1})
    list(plain.fit())
    first = begin(tmp_path / "often", benchmark, **settings)
    assert (first.schedule.steps_per_epoch, first.total) == (4, 8)
    seen = [event.step for event in first.fit(stop=lambda: first.step == 2) if isinstance(event, Validated)]
    again = resume_trainer(first.run, benchmark, lambda line: None)
    seen += [event.step for event in again.fit() if isinstance(event, Validated)]
    assert seen == [0, 1, 3, 4, 5, 7, 8]
    assert first.schedule.validations(first.total) == len(seen)
    assert losses(again.run) == losses(plain.run)
    steps = [row["step"] for row in again.run.metrics() if row["kind"] == "val"]
    assert steps == seen


def test_two_rhythms_of_validation_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"val_per_epoch above 1 needs train\.eval_every=1"):
        resolve([("test", {"train.val_per_epoch": 2, "train.eval_every": 2})])


def test_the_test_split_is_not_read(tmp_path: Path, small_demo: Path) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(small_demo, folder)
    blind = load_benchmark(folder)
    for path in blind.paths("test"):
        path.unlink()
    training = begin(tmp_path / "run", blind, **{"train.max_steps": 1})
    assert any(isinstance(event, StepDone) for event in training.fit())


def test_an_image_that_does_not_decode_is_named_and_the_steps_before_it_saved(
    tmp_path: Path, small_demo: Path
) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(small_demo, folder)
    training = begin(tmp_path / "run", load_benchmark(folder))
    events = training.fit()
    assert any(isinstance(event, StepDone) for event in events)  # goes on until the first
    victim = training.files[training.schedule.rest_of_epoch(1)[0][0]]
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(DatasetError, match=victim.name):
        list(events)
    assert training.run.checkpoints()[-1].name == "step-00000001"


@pytest.mark.parametrize("workers", [0, 1])
def test_the_number_of_workers_changes_nothing(tmp_path: Path, benchmark: Benchmark, workers: int) -> None:
    training = begin(tmp_path / "run", benchmark, **{"train.max_steps": 2, "train.num_workers": workers})
    first = next(event.loss for event in training.fit() if isinstance(event, StepDone))
    again = begin(tmp_path / "again", benchmark, **{"train.max_steps": 2})
    assert first == next(event.loss for event in again.fit() if isinstance(event, StepDone))


def test_a_changed_dataset_is_refused_on_resume(tmp_path: Path, small_demo: Path) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(small_demo, folder)
    training = begin(tmp_path / "run", load_benchmark(folder))
    list(training.fit(stop=lambda: True))
    pairs = folder / "compositional-split-natural" / "val_pairs.txt"
    pairs.write_text("\n".join(pairs.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(DatasetError, match="changed since"):
        resume_trainer(training.run, load_benchmark(folder), lambda line: None)


def test_the_environment_is_kept(small_run: Path) -> None:
    assert json.loads((small_run / "environment.json").read_text())["torch"] == torch.__version__
