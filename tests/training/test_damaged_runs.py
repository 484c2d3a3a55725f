"""Damaged run directories: resumed from the newest undamaged checkpoint, or refused with one sentence."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from refiner_cli.config import method_section
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.core.towers.architectures import preprocess_config
from refiner_cli.core.towers.backbone import BackboneSpec
from refiner_cli.core.towers.tiny import tiny_config
from refiner_cli.errors import ModelFileError, RefinerError, UsageError
from refiner_cli.settings import resolve
from refiner_cli.training.checkpoints import Checkpoints
from refiner_cli.training.recover import open_or_recover
from refiner_cli.training.run_dir import DatasetRef, Run, is_run, model_folder
from refiner_cli.training.selection import best_record
from refiner_cli.training.state import TrainerState, TrainProgress
from tests.core.cases import SPACE

CASES = 300
STEPS = (10, 20, 30)


class FakeModel:
    """A model of 16 numbers, enough for a checkpoint."""

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.zeros(4, 4))
        self.config = method_section("clip")()
        spec = BackboneSpec("tiny", "built-in", tiny_config(), preprocess_config(tiny_config(), {}))
        prints = dict.fromkeys(("fingerprint", "fingerprint_by_name"), lambda: "0" * 16)
        self.backbone = SimpleNamespace(spec=spec, **prints)
        self.space, self.calibration = SPACE, Calibration()

    def trainable_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {"weight": self.weight}

    saved_tensors = trainable_parameters


def state_of(run: Run) -> tuple[FakeModel, TrainerState]:
    model: Any = FakeModel()
    return model, TrainerState(run, model, None, torch.amp.GradScaler("cpu", enabled=False))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three checkpoints, of which the middle one is the best."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = resolve([("test", {"backbone": "tiny", "method": "clip"})])
    run = Run.create(folder, config, DatasetRef("demo", "/nowhere", "0" * 16), {})
    model, state = state_of(run)
    progress = TrainProgress()
    for step in STEPS:
        with torch.no_grad():
            model.weight.fill_(step)
        val = {"S": 1.0, "U": 1.0, "HM": 1.0, "AUC": 5.0 if step == 20 else 1.0, "n_seen": 1, "n_unseen": 1}
        run.append_metrics({"kind": "step", "step": step, "loss": 1.0})
        run.append_metrics({"kind": "val", "step": step, **val})
        record = best_record(run.checkpoint(step).name, step, val)
        best = progress.best if step == 30 else record
        progress = TrainProgress(step, validated=True, validation=record, best=best)
        state.save(progress, val)
        run.write_best(best)
    (folder / "curves.html").write_text("<html></html>")
    return folder


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here."""
    monkeypatch.setattr(os, "fsync", lambda _handle: None)


def flip(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(chance.choice([1, 4])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def cut(file: Path, chance: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: chance.randrange(file.stat().st_size)])


def empty(file: Path, _chance: random.Random) -> None:
    file.write_bytes(b"")


def remove(file: Path, _chance: random.Random) -> None:
    file.unlink()


def replace(file: Path, chance: random.Random) -> None:
    file.write_bytes(chance.choice([b"[]", b"null", b"{}", b"\xff\xfe\x00", b"[" * 100_000, b"NaN"]))


def make_folder(file: Path, _chance: random.Random) -> None:
    file.unlink()
    file.mkdir()


def leave_temporary(file: Path, _chance: random.Random) -> None:
    """What a process that is killed while writing leaves."""
    file.with_name(f".{file.name}.0123abcd.tmp").write_bytes(b"torn")


DAMAGE: list[Callable[[Path, random.Random], None]] = [
    flip, flip, flip, cut, empty, remove, replace, make_folder, leave_temporary
]  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without what a killed process left."""
    files = (path for path in folder.iterdir() if path.is_file() and path.suffix != ".tmp")
    return {path.name: path.read_bytes() for path in files}


def damaged_runs(pristine: Path, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    for case in range(CASES):
        chance, folder = random.Random(case), tmp_path / "run"
        shutil.copytree(pristine, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
        for file in chance.sample(files, chance.choice([1, 1, 2, 4, 8])):
            damage = chance.choice(DAMAGE)
            (damage if damage is not make_folder or file.parent != folder else empty)(file, chance)
        yield case, folder
        shutil.rmtree(folder)


def test_a_damaged_run_resumes_from_the_newest_undamaged_checkpoint(pristine: Path, tmp_path: Path) -> None:
    resumed, refused = 0, list[str]()
    for case, folder in damaged_runs(pristine, tmp_path):
        intact = [
            step
            for step in STEPS
            if content(folder / "checkpoints" / f"step-{step:08d}")
            == content(pristine / "checkpoints" / f"step-{step:08d}")
        ]
        same_settings = (folder / "run.json").is_file() and content(folder)["run.json"] == content(pristine)[
            "run.json"
        ]
        log: list[str] = []
        try:
            run = open_or_recover(folder, log.append)
            model, state = state_of(run)
            progress = state.restore_newest(log.append)
        except ModelFileError as error:
            refused.append(str(error))
            assert not (intact and same_settings), refused
            continue
        assert progress is not None, case
        assert progress.step == max(intact), case
        assert bool((model.weight == progress.step).all()), case
        assert all("\n" not in line for line in log), case
        run.discard_after(progress.step, validated=progress.validated)
        run.write_best(progress.best)
        run.stored.prune(progress.best["checkpoint"] if progress.best else None)
        assert all(row["step"] <= progress.step for row in run.metrics()), case
        assert not [*folder.glob(".*.tmp"), *(folder / "checkpoints").glob(".*.tmp")], case
        assert progress.best is not None, case  # every intact checkpoint was validated
        assert progress.best["step"] == (20 if 20 in intact else max(intact)), case
        assert model_folder(folder).name == progress.best["checkpoint"], case
        resumed += 1
    assert resumed > CASES / 2
    assert not [sentence for sentence in refused if "\n" in sentence]


def test_the_next_best_is_chosen_by_what_the_run_selects_by(tmp_path: Path) -> None:
    """By validation loss, and by metrics before calibration, whatever the checkpoints' config.json says."""
    config = resolve([("test", {"backbone": "tiny", "method": "clip"})])
    losses, plain, shown = (4.0, 1.0, 2.0), (5.0, 9.0, 6.0), (8.0, 9.0, 7.0)  # shown: the first is calibrated
    for by_loss in (True, False):
        run = Run.create(tmp_path / f"run-{by_loss}", config, DatasetRef("demo", "/nowhere", "0" * 16), {})
        _, state = state_of(run)
        best = None
        for step, loss, auc, other in zip(STEPS, losses, plain, shown, strict=True):
            record = best_record(
                run.checkpoint(step).name, step, {"AUC": auc}, validation_loss=loss if by_loss else None
            )
            best = record if step <= 20 else best
            state.save(TrainProgress(step, validated=True, validation=record, best=best), {"AUC": other})
        (run.checkpoint(20) / "model.safetensors").write_bytes(b"")
        progress = state_of(run)[1].restore_newest(lambda _: None)
        assert progress is not None
        assert progress.best == record  # of step 30


@pytest.mark.parametrize("torn", [None, b'{"format": "refi'])
def test_a_checkpoint_gives_back_all_that_run_json_said(
    pristine: Path, tmp_path: Path, torn: bytes | None
) -> None:
    folder = shutil.copytree(pristine, tmp_path / "run")
    run = Run.open(folder)
    run = dataclasses.replace(
        run,
        dataset=dataclasses.replace(run.dataset, labels="labels.jsonl"),
        skipped=("a.jpg",),
        changes=({"after_step": 20, "train.lr": [0.1, 0.2]},),
    )
    assert all([*vars(run).values(), *vars(run.dataset).values()])  # nothing is what it would be unsaid
    state_of(run)[1].save(TrainProgress(40))
    (folder / "run.json").unlink()
    if torn:
        (folder / "run.json").write_bytes(torn)
    assert open_or_recover(folder, print) == run
    assert Run.open(folder) == run


def test_a_damaged_run_is_never_read_as_a_model(pristine: Path, tmp_path: Path) -> None:
    """Predicting with it works with undamaged files, or is refused with one sentence."""
    refused = []
    for case, folder in damaged_runs(pristine, tmp_path):
        if not is_run(folder):
            continue
        try:
            found = model_folder(folder)
        except RefinerError as error:
            refused.append(str(error))
        else:
            assert content(found) == content(pristine / "checkpoints" / found.name), case
    assert not [sentence for sentence in refused if "\n" in sentence]


def test_four_flipped_bits_in_the_weights_are_noticed(pristine: Path, tmp_path: Path) -> None:
    shutil.copytree(pristine, tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / "step-00000030" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 0b1111
    weights.write_bytes(data)
    log: list[str] = []
    newest = Checkpoints(tmp_path / "run" / "checkpoints").newest_intact(log.append)
    assert newest is not None
    assert newest.name == "step-00000020"
    assert len(log) == 1
    assert "step-00000030/model.safetensors is damaged" in log[0].replace("\\", "/")


def test_a_checkpoint_that_was_about_to_be_replaced_is_put_back(pristine: Path, tmp_path: Path) -> None:
    shutil.copytree(pristine, tmp_path / "run")
    stored = Checkpoints(tmp_path / "run" / "checkpoints")
    stored.path(30).rename(stored.folder / ".step-00000030.replaced")
    (stored.folder / ".step-00000030.0123abcd.tmp").mkdir()
    stored.clean()
    assert [path.name for path in stored.all()][-1] == "step-00000030"
    assert stored.is_intact("step-00000030")
    assert not [path for path in stored.folder.iterdir() if path.name.startswith(".")]


def test_a_checkpoint_that_cannot_replace_the_one_of_its_step_leaves_it(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refiner_cli import files

    shutil.copytree(pristine, tmp_path / "run")
    stored = Checkpoints(tmp_path / "run" / "checkpoints")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "move_into_place", full)
    with pytest.raises(OSError, match="No space"), stored.new(30) as part:
        (part / "config.json").write_text("{}")
    assert stored.is_intact("step-00000030")


def test_a_run_of_version_0_1_0_gets_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"format": "refiner.run/1", "config": {}, "dataset": {}}))
    for read in (Run.open, model_folder, lambda folder: open_or_recover(folder, print)):
        with pytest.raises(ModelFileError, match=r"is a run of refiner 0\.1\.0"):
            read(tmp_path)


def test_a_run_of_a_method_that_is_not_installed_is_not_called_damaged(
    pristine: Path, tmp_path: Path
) -> None:
    shutil.copytree(pristine, tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    file.write_text(file.read_text().replace('"method": "clip"', '"method": "magic"'))
    with pytest.raises(ModelFileError, match=r"The method 'magic' of the run .* is unknown") as raised:
        open_or_recover(tmp_path / "run", print)
    assert "damaged" not in str(raised.value)


@pytest.mark.parametrize(
    "left",
    [
        [],
        [".run.json.0123abcd.tmp"],
        ["environment.json", ".run.json.0123abcd.tmp", ".lock"],
        [".environment.json.0123abcd.tmp"],
    ],
)
def test_a_start_killed_while_writing_leaves_a_folder_that_can_be_started(
    tmp_path: Path, left: list[str]
) -> None:
    for name in left:
        (tmp_path / name).write_bytes(b"")
    config = resolve([("test", {"backbone": "tiny"})])
    Run.create(tmp_path, config, DatasetRef("demo", "/nowhere", "0" * 16), {})
    assert Run.open(tmp_path).config == config
    assert not list(tmp_path.glob("*.tmp"))
    assert not list(tmp_path.glob(".*.tmp"))
    with pytest.raises(UsageError, match="exists already"):
        Run.create(tmp_path, config, DatasetRef("demo", "/nowhere", "0" * 16), {})


def test_of_several_starts_in_one_folder_exactly_one_wins(tmp_path: Path) -> None:
    config, dataset = resolve([]), DatasetRef("demo", "/nowhere", "0" * 16)

    def start(folder: Path) -> bool:
        together.wait()
        try:
            Run.create(folder, config, dataset, {})
        except UsageError:
            return False
        return True

    together = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        for number in range(100):
            winners = list(pool.map(start, [tmp_path / str(number)] * 4))
            assert sum(winners) == 1, number


@pytest.mark.parametrize("other", ["photo.jpg", "run.json", "seeds.json", "metrics.jsonl"])
def test_a_folder_with_anything_else_in_it_is_not_used_for_a_run(tmp_path: Path, other: str) -> None:
    (tmp_path / other).write_bytes(b"")
    with pytest.raises(UsageError, match="exists already"):
        Run.create(tmp_path, resolve([]), DatasetRef("demo", "/nowhere", "0" * 16), {})
    assert [path.name for path in tmp_path.iterdir()] == [other]


def test_a_run_is_there_once_it_has_what_it_starts_from(tmp_path: Path) -> None:
    def create(fill: Callable[[Path], None]) -> Run:
        return Run.create(folder, resolve([]), DatasetRef("demo", "/nowhere", "0" * 16), {}, fill=fill)

    folder = tmp_path / "run"
    (folder / "init").mkdir(parents=True)  # of a start that was killed
    (folder / "init" / "config.json").write_text("{}")

    def fails(place: Path) -> None:
        assert not is_run(place)
        assert not (place / "init").exists()
        (place / "init").mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create(fails)
    assert not folder.exists()
    create(lambda place: (place / "init").mkdir())
    assert (folder / "init").is_dir()


def test_an_abandoned_run_leaves_nothing_and_one_with_a_checkpoint_stays(
    pristine: Path, tmp_path: Path
) -> None:
    run = Run.create(tmp_path / "new", resolve([]), DatasetRef("demo", "/nowhere", "0" * 16), {})
    run.abandon()
    assert not (tmp_path / "new").exists()
    shutil.copytree(pristine, tmp_path / "run")
    Run.open(tmp_path / "run").abandon()
    assert Run.open(tmp_path / "run").checkpoints()
