"""The demo world and its dataset: sizes, held-out pairs, the same bytes from the same seed."""

from __future__ import annotations

import errno
import filecmp
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import torch

from refiner_cli.core.towers import tiny
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.demo import dataset, scenes
from refiner_cli.demo.dataset import DemoSize, demo_pairs, draw_all, draw_tasks, make_demo
from refiner_cli.demo.shapes import SHAPES
from refiner_cli.demo.states import EFFECTS
from refiner_cli.demo.vocabulary import KINDS, STATES, backbone_pairs, demo_split, feasible
from refiner_cli.errors import ModelFileError, RefinerError
from refiner_cli.experiments import pretrain_tiny
from tests.conftest import Cli


def test_the_benchmark_is_as_large_as_promised(small_demo: Path) -> None:
    benchmark = load_benchmark(small_demo)
    train = set(benchmark.pairs["train"])
    unseen = {name: set(benchmark.pairs[name]) - train for name in ("val", "test")}
    assert len(benchmark.states) >= 10
    assert len(benchmark.objects) >= 12
    assert len(train) >= 60
    assert len(unseen["val"]) >= 20
    assert len(unseen["test"]) >= 25
    assert not unseen["val"] & unseen["test"]
    assert {s for s, _ in train} == set(benchmark.states)
    assert {o for _, o in train} == set(benchmark.objects)
    assert 1900 <= DemoSize().train * len(train) <= 2100


@pytest.mark.parametrize("holdout", [0, 1])
def test_the_backbone_sees_no_held_out_pair(holdout: int) -> None:
    held_out = set(demo_split(holdout).val_unseen) | set(demo_split(holdout).test_unseen)
    assert not held_out & set(backbone_pairs(holdout))
    assert set(demo_split(holdout).train) <= set(backbone_pairs(holdout))
    rng = np.random.default_rng(0)
    for _ in range(30):
        _, shown = pretrain_tiny.draw_image(rng, holdout)
        assert not held_out & set(shown)
        text = pretrain_tiny.caption(shown, rng)
        assert not [pair for pair in held_out if " ".join(pair) in text]


def test_holdouts_hold_out_other_pairs_and_leave_enough_of_every_name() -> None:
    holdouts = [demo_split(number) for number in range(4)]
    assert len({holdout.test_unseen for holdout in holdouts}) == 4
    for holdout in holdouts:
        assert (len(holdout.val_unseen), len(holdout.test_unseen)) == (22, 28)
        assert not set(holdout.train) & {*holdout.val_unseen, *holdout.test_unseen}
        for i in (0, 1):  # states, objects
            left = Counter(pair[i] for pair in holdout.train)
            assert all(left[pair[i]] >= 3 for pair in (*holdout.val_unseen, *holdout.test_unseen))


def test_a_demo_of_another_holdout_shows_its_pairs(tmp_path: Path) -> None:
    make_demo(tmp_path / "demo", size=DemoSize(train=1, val=1, test=1), clutter=0, holdout=2)
    benchmark = load_benchmark(tmp_path / "demo")
    assert benchmark.pairs["train"] == demo_split(2).train
    for part, unseen in (("val", demo_split(2).val_unseen), ("test", demo_split(2).test_unseen)):
        assert set(benchmark.pairs[part]) - set(demo_split(2).train) == set(unseen)


def test_everything_that_exists_can_be_drawn() -> None:
    objects = {o for names in KINDS.values() for o in names}
    assert objects == set(SHAPES)
    assert set(STATES) == set(EFFECTS)
    rng = np.random.default_rng(0)
    for pair in feasible(frozenset(STATES), frozenset(objects)):
        look = scenes.look_of(pair, 20, rng)
        assert np.isfinite(look.rgb).all()
        assert look.alpha.mean() > 0.02


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    size = DemoSize(train=1, val=1, test=1)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_demo(tmp_path / name, seed, size)
    files = sorted(
        p.relative_to(tmp_path / "a").as_posix() for p in (tmp_path / "a").rglob("*") if p.is_file()
    )
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", files, shallow=False) == (files, [], [])
    _, other, _ = filecmp.cmpfiles(tmp_path / "a", tmp_path / "c", files, shallow=False)
    assert len(other) == sum(f.endswith(".jpg") for f in files)


def test_clutter_changes_the_background_not_the_truth() -> None:
    plain, full = (
        np.asarray(scenes.scene(("wet", "apple"), demo_split().train, np.random.default_rng(1), c), float)
        for c in (0, 20)
    )
    assert np.abs(plain - full).mean() > 5


def test_the_shipped_weights_are_small_and_load() -> None:
    assert tiny.weights_path().stat().st_size <= 12e6
    state = tiny.load_compact()
    table = state[tiny.TABLE]
    fresh = tiny.word_table(*table.shape)
    trained = (table != fresh).any(1)
    assert 30 < int(trained.sum()) < 200  # the words of the captions
    assert abs(float(fresh.std()) - tiny.WORD_STD) < 1e-4


def test_a_tiny_backbone_can_be_loaded_from_a_file(tmp_path: Path) -> None:
    state = tiny.load_compact()
    state["logit_scale"] = torch.tensor(3.0)
    words = torch.tensor([0, 320, 1125])
    tiny.save_compact(state, words, tmp_path / "mine.safetensors")
    mine = load_backbone("tiny", str(tmp_path / "mine.safetensors"))
    assert mine.logit_scale == pytest.approx(np.exp(3), rel=1e-6)
    table = mine.clip.token_embedding.weight
    assert torch.equal(table[words], state[tiny.TABLE][words].half().float())
    changed = (table != tiny.word_table(*table.shape)).any(1)
    assert set(changed.nonzero().flatten().tolist()) <= set(words.tolist())

    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelFileError, match=r"torn\.safetensors cannot be read"):
        load_backbone("tiny", str(tmp_path / "torn.safetensors"))


@pytest.mark.parametrize("clutter", [0, 6])
def test_a_scene_is_rgb_of_the_stated_size(clutter: int) -> None:
    image = scenes.scene(("torn", "hat"), demo_split().train, np.random.default_rng(2), clutter)
    assert (image.mode, image.size) == ("RGB", (scenes.SIZE, scenes.SIZE))


def test_a_demo_that_another_process_draws_at_the_same_time_is_used(
    cli: Cli, small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_race(folder: Path) -> None:
        shutil.copytree(small_demo, folder)
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(folder))

    monkeypatch.setenv("REFINER_HOME", str(tmp_path))
    monkeypatch.setattr("refiner_cli.demo.dataset.make_demo", lose_the_race)
    assert cli("info", "demo", "--json").json["name"] == "demo"


def test_processes_draw_what_one_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "cores", lambda: 2)
    pairs, drawn = demo_pairs(0), []
    for name, worth in (("one", 100), ("two", 1)):
        monkeypatch.setattr(dataset, "WORTH_A_PROCESS", worth)
        tasks = list(draw_tasks(tmp_path / name, pairs, DemoSize(0, 0, 1), 0, 1, 0))[:6]
        for task in tasks:
            task.file.parent.mkdir(parents=True, exist_ok=True)
        draw_all(tasks)
        drawn.append([task.file.read_bytes() for task in tasks])
    assert drawn[0] == drawn[1]


def test_a_drawing_process_that_dies_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object, **__: object) -> Iterator[None]:
        raise BrokenProcessPool("terminated abruptly")
        yield

    monkeypatch.setattr(dataset, "in_processes", die)
    with pytest.raises(RefinerError, match="A process that draws images died"):
        draw_all([])
