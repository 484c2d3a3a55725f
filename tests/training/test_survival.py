"""Trainings as real processes: killed, terminated, out of disk, with a worker gone."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from refiner_cli.core.model_io.checkpoint import read_tensors
from refiner_cli.core.runtime import loader
from refiner_cli.core.runtime.loader import ImageBatch
from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.errors import RefinerError, UsageError
from refiner_cli.settings import resolve
from refiner_cli.training.events import StepDone
from refiner_cli.training.run_dir import DatasetRef, Run
from refiner_cli.training.setup import build_trainer, resume_trainer
from refiner_cli.training.trainer import Trainer
from tests.conftest import Cli
from tests.training.processes import SETTINGS, begin, rows, steps, wait_until

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def training_on(dataset: Path, folder: Path, **more: object) -> Trainer:
    benchmark = load_benchmark(dataset)
    settings = {"backbone": "tiny", "train.batch_size": 16, "model.adapter_blocks": 1}
    ref = DatasetRef(benchmark.name, str(benchmark.root), benchmark.fingerprint())
    run = Run.create(folder, resolve([("test", settings | more)]), ref, {})
    return build_trainer(run, benchmark, lambda line: None)


@posix
def test_terminated_killed_and_resumed_equals_uninterrupted(
    cli: Cli, small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in the middle of an epoch, and the second in the middle of whatever it was doing."""
    more = (
        *SETTINGS,
        "--set",
        "train.batch_size=16",
        "--set",
        "train.epochs=1",
        "--set",
        "train.checkpoint_minutes=0",
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert cli("-q", "train", small_demo, "--out", tmp_path / "whole", *more).code == 0
    torch.set_num_threads(threads)

    run = tmp_path / "parts"
    first = begin(small_demo, "--out", run, *more)
    wait_until(lambda: steps(run) >= 2, first)
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate()
    assert first.returncode == 143
    assert f"stopped after step {steps(run)}; the state is saved" in said
    assert Run.open(run).checkpoints()[-1].name == f"step-{steps(run):08d}"

    second = begin("--resume", "--out", run)
    wait_until(lambda: steps(run) >= 6, second)
    second.kill()
    second.communicate()

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    assert cli("-q", "train", "--resume", "--out", run).code == 0
    torch.set_num_threads(threads)
    assert rows(run) == rows(tmp_path / "whole")
    ours, theirs = (read_tensors(Run.open(f).checkpoints()[-1]) for f in (run, tmp_path / "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert len(list(run.glob("environment*.json"))) == 3


@posix
def test_a_full_disk_leaves_the_last_checkpoint_and_one_sentence(small_demo: Path, tmp_path: Path) -> None:
    import resource

    training = training_on(small_demo, tmp_path / "run", **{"train.checkpoint_minutes": 0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    events = training.fit()
    try:
        with pytest.raises(RefinerError) as raised:
            for event in events:
                if isinstance(event, StepDone) and event.step == 2:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "The checkpoint of step 2 could not be written" in str(raised.value)
    assert "The last complete one is step-00000001" in str(raised.value)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-00000000",
        "step-00000001",
    ]
    assert resume_trainer(training.run, training.benchmark, lambda line: None).step == 1


@pytest.mark.skipif(sys.platform != "linux", reason="children are found in /proc")
def test_a_decoding_process_that_dies_is_named(small_demo: Path, tmp_path: Path) -> None:
    # A process of its own: torch answers from a signal handler, and that may be anywhere in this one.
    run = tmp_path / "run"
    more = ("--set", "train.num_workers=1", "--set", "train.epochs=50")
    training = begin(small_demo, "--out", run, *SETTINGS, *more)
    wait_until(lambda: steps(run) >= 1, training)
    for child in Path(f"/proc/{training.pid}/task/{training.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    _, said = training.communicate()
    assert training.returncode == 1
    assert "process that decodes images ended unexpectedly" in said
    assert "train.num_workers" in said
    assert Run.open(run).checkpoints()


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_decoding_process_that_dies_before_its_pixels_are_fetched_is_named(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def dies(*_: object, **__: object) -> Iterator[ImageBatch]:
        raise error
        yield

    def first(workers: int) -> ImageBatch:
        return next(loader.load_batches([], dies, [], device=torch.device("cpu"), workers=workers))

    monkeypatch.setattr(loader, "DataLoader", dies)
    with pytest.raises(RefinerError, match="process that decodes images ended unexpectedly"):
        first(workers=1)
    with pytest.raises(type(error)):  # without such a process it is something else
        first(workers=0)


def test_a_second_training_in_the_same_run_is_refused(small_demo: Path, tmp_path: Path) -> None:
    training = training_on(small_demo, tmp_path / "run")
    going = training.fit()
    next(going)
    with pytest.raises(UsageError, match="Another process is training in"):
        next(resume_trainer(training.run, training.benchmark, lambda line: None).fit())
    going.close()


def test_a_run_whose_settings_were_changed_is_not_resumed(small_demo: Path, tmp_path: Path) -> None:
    training = training_on(small_demo, tmp_path / "run")
    list(training.fit(stop=lambda: True))
    file = tmp_path / "run" / "run.json"
    content = json.loads(file.read_text())
    content["config"]["train"]["lr"] = 0.5
    file.write_text(json.dumps(content))
    with pytest.raises(RefinerError, match=r"train\.lr .* is 0\.5 now and was 0\.0005"):
        resume_trainer(Run.open(tmp_path / "run"), training.benchmark, lambda line: None)


def test_best_json_is_what_the_last_checkpoint_says(small_demo: Path, tmp_path: Path) -> None:
    """A process killed between writing the two leaves an old one behind."""
    training = training_on(small_demo, tmp_path / "run", **{"train.max_steps": 1})
    list(training.fit())
    best = training.run.read_best()
    (tmp_path / "run" / "best.json").unlink()
    list(resume_trainer(training.run, training.benchmark, lambda line: None).fit())
    assert training.run.read_best() == best
