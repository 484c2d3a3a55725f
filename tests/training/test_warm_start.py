"""Warm start: what fits of a trained model is taken over, words by name, and the run says what."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from refiner_cli.config import method_section
from refiner_cli.core.model_io.checkpoint import read_model, read_tensors
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.data.benchmark import Benchmark, load_benchmark
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import ConfigError, ModelFileError
from refiner_cli.settings import resolve
from refiner_cli.training.run_dir import INIT, DatasetRef, Run, model_folder
from refiner_cli.training.setup import build_trainer, resume_trainer
from refiner_cli.training.trainer import Trainer
from refiner_cli.training.warm_start import (
    WordsTaken,
    copy_tensors,
    initial_layer,
    obtainable_backbone,
    store_initial,
)
from tests.conftest import Cli

OTHER = LabelSpace.from_pairs([("Sliced", "red-apple"), ("wet", "dog")], [("Sliced", "red-apple")])
OURS = LabelSpace.from_pairs([("sliced", "red_apple"), ("dry", "dog"), ("dry", "cat")], [("dry", "cat")])


def build(tiny: Backbone, method: str, space: LabelSpace, **settings: object) -> Model:
    return build_model(method, tiny, method_section(method)(**settings), space)


def trained(tiny: Backbone, method: str, space: LabelSpace, **settings: object) -> dict[str, torch.Tensor]:
    """The saved tensors of a model that is not at its initial values: every entry differs."""
    torch.manual_seed(3)
    saved = build(tiny, method, space, **settings).saved_tensors()
    return {name: value.detach() + 1 + torch.rand_like(value) for name, value in saved.items()}


@pytest.mark.parametrize("method", ["refiner", "csp", "coop", "troika"])
def test_all_that_fits_is_taken_and_words_go_by_name(tiny: Backbone, method: str) -> None:
    saved, model = trained(tiny, method, OTHER), build(tiny, method, OURS)
    before = {name: value.detach().clone() for name, value in model.saved_tensors().items()}
    taken = copy_tensors(model, saved, OTHER, "other")
    tables = model.label_tables()
    for name, value in model.trainable_parameters().items():
        if name not in tables:
            assert name in taken.tensors
            assert torch.equal(value, saved[name])
            continue
        ours, theirs = (getattr(space, f"{tables[name]}s") for space in (OURS, OTHER))
        known = {"sliced": "Sliced", "red_apple": "red-apple", "dog": "dog"}
        for i, word in enumerate(ours):
            row = saved[name][theirs.index(known[word])] if word in known else before[name][i]
            assert torch.equal(value[i], row), word
    if "prompts.states" in taken.tensors:
        assert taken.words["state"] == WordsTaken(("sliced",), ("dry",), ("wet",))
        assert taken.words["object"] == WordsTaken(("dog", "red_apple"), ("cat",), ())
    # What is fitted rather than trained is fitted anew: the centres, and Troika's running statistics.
    assert taken.left.keys() <= saved.keys() - model.trainable_parameters().keys()


def test_adapters_stay_with_their_blocks(tiny: Backbone) -> None:
    saved = trained(tiny, "refiner", OTHER, adapter_blocks=2)
    model = build(tiny, "refiner", OURS, adapter_blocks=3)
    taken = copy_tensors(model, saved, OTHER, "other")
    values = model.trainable_parameters()
    for part, here, there in (
        ("adapters", "1", "0"),
        ("adapters", "2", "1"),
    ):
        name = f"{part}.{here}.mlp.down.weight"
        assert torch.equal(values[name], saved[f"{part}.{there}.mlp.down.weight"])
    assert any(name.startswith("adapters.0.") for name in taken.new)


def test_another_method_and_other_sizes_take_what_fits_and_say_what_is_left(tiny: Backbone) -> None:
    saved = trained(tiny, "refiner", OTHER)
    csp = copy_tensors(build(tiny, "csp", OURS), saved, OTHER, "other")
    assert set(csp.tensors) == {"prompts.states", "prompts.objects"}
    assert csp.left["visual_refinement.roles.state.queries"] == "the new model has no such part"
    wide = copy_tensors(build(tiny, "refiner", OURS, adapter_dim=8), saved, OTHER, "other")
    assert "is needed" in wide.left["adapters.0.mlp.down.weight"]
    assert "adapters.0.mlp.down.weight" in wide.new
    assert "visual_refinement.roles.state.queries" in wide.tensors
    text = "\n".join(csp.lines())
    assert "states: 1 of 2 taken over by name, 1 new (dry), 1 left (wet)" in text
    assert "left, the new model has no such part: adapters (48 tensors)" in text


@pytest.fixture(scope="module")
def benchmark(small_demo: Path) -> Benchmark:
    return load_benchmark(small_demo)


def begin(folder: Path, benchmark: Benchmark, start: Path) -> Trainer:
    config = resolve([("test", {"init": str(start), "train.max_steps": 2})], initial_layer(str(start), start))
    ref = DatasetRef(benchmark.name, str(benchmark.root), benchmark.fingerprint())
    run = Run.create(folder, config, ref, {}, fill=lambda place: store_initial(place, start))
    return build_trainer(run, benchmark, lambda line: None)


def test_a_warm_started_run_begins_at_the_other_model_and_resumes_without_it(
    tmp_path: Path, benchmark: Benchmark, small_run: Path
) -> None:
    start = tmp_path / "start"
    shutil.copytree(model_folder(small_run), start)
    learned = read_tensors(start)
    whole = begin(tmp_path / "whole", benchmark, start)
    for name, value in whole.model.trainable_parameters().items():
        assert torch.equal(value, learned[f"trained.{name}"])  # the same words: all of it
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(start)
    list(whole.fit())
    resumed = resume_trainer(Run.open(tmp_path / "parts"), benchmark, lambda line: None)
    list(resumed.fit())
    first, second = (read_tensors(model_folder(tmp_path / name)) for name in ("whole", "parts"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_command_prints_and_keeps_what_was_taken(
    cli: Cli, tmp_path: Path, small_demo: Path, small_run: Path, small_export: Path
) -> None:
    done = cli("train", small_demo, "--init", small_export, "--set", "train.max_steps=1", "--seeds", 2,
               "--out", tmp_path / "runs", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert "taken over from" in done.err
    for seed, run in enumerate(done.json["runs"]):
        kept = json.loads((tmp_path / "runs" / f"seed-{seed}" / INIT / "taken.json").read_text())
        assert kept == run["init"]
        assert kept["source"] == str(small_export)
        assert kept["new"] == []
    config = Run.open(tmp_path / "runs" / "seed-0").config
    assert (config.backbone, config.pretrained) == ("tiny", "built-in")
    assert config.model == Run.open(small_run).config.model


def test_a_backbone_by_name_is_just_the_backbone(cli: Cli, tmp_path: Path, small_demo: Path) -> None:
    done = cli("train", small_demo, "--init", "tiny", "--method", "csp", "--set", "train.max_steps=1",
               "--out", tmp_path / "run", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert "init" not in done.json
    assert Run.open(tmp_path / "run").config.backbone == "tiny"


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--backbone", "ViT-B-32"], ["--backbone", "ViT-B-32", "contradicts", "tiny"]),
        (["--pretrained", "none"], ["tiny (none)", "tiny (built-in)", "their weights differ"]),
    ],
)
def test_another_backbone_is_an_error_that_names_both(
    cli: Cli, tmp_path: Path, small_demo: Path, small_run: Path, extra: list[str], expected: list[str]
) -> None:
    done = cli("train", small_demo, "--init", small_run, *extra, "--out", tmp_path / "run")
    assert done.code == ConfigError.exit_code
    assert all(text in done.err for text in expected), done.err
    assert not (tmp_path / "run").exists()


def test_a_start_that_is_no_model_is_refused_and_leaves_no_run(
    cli: Cli, tmp_path: Path, small_demo: Path
) -> None:
    done = cli("train", small_demo, "--init", tmp_path, "--out", tmp_path / "run")
    assert done.code == ModelFileError.exit_code
    assert "config.json is missing" in done.err
    assert not (tmp_path / "run").exists()


def test_a_backbone_that_cannot_be_had_by_name_comes_from_the_export(
    cli: Cli, tmp_path: Path, small_demo: Path
) -> None:
    drawn = ["--backbone", "tiny", "--pretrained", "none", "--seed", 5, "--method", "clip"]
    assert cli("train", small_demo, *drawn, "--out", tmp_path / "first").code == 0
    assert cli("export", tmp_path / "first", tmp_path / "model").code == 0
    name, weights = obtainable_backbone(tmp_path / "model")
    assert (name, Path(weights)) == ("tiny", tmp_path / "model" / "model.safetensors")
    done = cli("train", small_demo, "--init", tmp_path / "model", "--out", tmp_path / "second")
    assert done.code == 0, done.err
    ours, theirs = (read_model(model_folder(tmp_path / name))[0] for name in ("first", "second"))
    assert ours.backbone.fingerprint() == theirs.backbone.fingerprint()
