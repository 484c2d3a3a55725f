"""``refiner config``: every setting, its value and where it comes from; recipes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from refiner_cli.config import known_keys
from refiner_cli.data.benchmark import (
    METADATA,
    SPLIT_FOLDER,
    SPLITS,
    Sample,
    Split,
    load_benchmark,
    write_metadata,
    write_pairs,
)
from refiner_cli.data.download.catalog import Catalogue, Counts
from refiner_cli.data.download.catalog_files import built_in
from refiner_cli.data.labels import Pair
from refiner_cli.plugins import method_names
from refiner_cli.recipes import FEW_IN_ALL, recipe_for, recipe_names
from refiner_cli.settings import resolve
from tests.conftest import Cli


def test_every_setting_is_listed_with_the_source_of_its_value(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFINER_TRAIN__WARMUP", "0.2")
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nlr = 0.5\n")
    done = cli("config", "demo", "--config", file, "--set", "model.queries_per_role=3", "--json")
    rows = {row["key"]: row for row in done.json["settings"]}
    assert set(rows) == set(known_keys("refiner"))
    assert all(row["description"] and row["type"] for row in rows.values())
    assert (rows["train.lr"]["value"], rows["train.lr"]["source"]) == (0.5, str(file))
    assert (rows["train.warmup"]["value"], rows["train.warmup"]["source"]) == (0.2, "environment")
    assert (rows["model.queries_per_role"]["value"], rows["model.queries_per_role"]["source"]) == (3, "--set")
    assert (rows["backbone"]["value"], rows["backbone"]["source"]) == ("tiny", "demo.toml")
    assert (rows["seed"]["value"], rows["seed"]["source"]) == (0, "default")


def test_the_settings_are_those_of_the_method(cli: Cli) -> None:
    text = cli("config", "--method", "csp").out
    assert "model.primitive_dropout = 0.3" in text
    assert "[number; default 0.3]" in text
    assert "model.queries_per_role" not in text


def test_the_list_is_a_file_of_the_same_settings(cli: Cli, tmp_path: Path) -> None:
    asked = ("config", "--method", "troika", "--set", "backbone=tiny", "--set", "train.lr=3e-5",
             "--set", "calibration.wise_ft_alpha=1")  # fmt: skip
    file = tmp_path / "listed.toml"
    file.write_text(cli(*asked).out, "utf-8")
    first, second = (
        cli(*words, "--json").json["settings"] for words in (asked, ("config", "--config", file))
    )
    assert [(row["key"], row["value"]) for row in first] == [(row["key"], row["value"]) for row in second]
    assert {row["source"] for row in second} == {str(file)}


def test_recipes_are_listed_printed_and_named(cli: Cli, tmp_path: Path) -> None:
    assert cli("config", "--recipes").out.split() == recipe_names()
    text = cli("config", "--recipe", "own").out
    assert tomllib.loads(text)["train"]["epochs"] == 20
    rows = {row["key"]: row for row in cli("config", "--config", "own", "--json").json["settings"]}
    assert (rows["train.epochs"]["value"], rows["train.epochs"]["source"]) == (20, "own.toml")
    refused = cli("config", "--recipe", "none")
    assert refused.code == 2
    assert "The recipes are c-gqa, c-gqa-clip, " in refused.err


def test_plain_flags_of_train_set_their_settings(cli: Cli, small_demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ("--epochs", "1", "--batch-size", "32", "--lr", "0.001", "--workers", "0")
    flags += ("--backbone", "tiny", "--method", "clip")
    assert cli("-q", "train", small_demo, "--out", run, *flags).code == 0
    stored = json.loads((run / "run.json").read_text())["config"]["train"]
    assert (stored["epochs"], stored["batch_size"], stored["lr"], stored["num_workers"]) == (1, 32, 0.001, 0)
    refused = cli("train", small_demo, "--lr", "-1", "--out", tmp_path / "other")
    assert refused.code == 2
    assert "--lr: train.lr = -1.0 is not valid" in refused.err


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_valid_for_its_method(name: str) -> None:
    layer = recipe_for(name)
    assert layer is not None
    method = next((m for m in method_names() if name.endswith(f"-{m}")), "refiner")
    assert resolve([layer, ("test", {"method": method})]).method == method


def test_a_setting_of_a_recipe_gives_way_to_one_that_excludes_it(cli: Cli, tmp_path: Path) -> None:
    """MIT-States' recipe validates three times an epoch."""

    def rhythm(*options: object) -> dict[str, tuple[int, str]]:
        outcome = cli("config", "mit-states", *options, "--json")
        rows = {row["key"].removeprefix("train."): row for row in outcome.json["settings"]}
        return {key: (rows[key]["value"], rows[key]["source"]) for key in ("eval_every", "val_per_epoch")}

    assert rhythm("--config", "few") == {"eval_every": (10, "few.toml"), "val_per_epoch": (1, "default")}
    both = ("--config", "few", "--set", "train.val_per_epoch=2")
    assert rhythm(*both) == {"eval_every": (1, "default"), "val_per_epoch": (2, "--set")}
    assert rhythm("--set", "train.eval_every=1")["val_per_epoch"] == (3, "mit-states.toml")
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nval_per_epoch = 2\n")
    own = cli("config", "mit-states", "--config", file, "--set", "train.eval_every=2")
    assert own.code == 2
    assert f"train.val_per_epoch is 2 ({file}), train.eval_every is 2 (--set)" in own.err


@pytest.mark.parametrize("name", ["own", "vectors", "few-csp", "mit-states-clip"])
def test_a_folder_that_is_called_as_a_recipe_is_not_of_that_recipe(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    outcome = cli("config", name, "--json")
    assert {row["source"] for row in outcome.json["settings"]} == {"default"}
    assert "recipe" not in outcome.err


def test_many_images_are_not_few_however_few_a_pair_has(cli: Cli, tmp_path: Path) -> None:
    # C-GQA has 5 images a pair, and 26,920 in all.
    pairs = tuple((f"s{i}", f"o{j}") for i in range(58) for j in range(58))
    some: dict[Split, tuple[Pair, ...]] = {"train": pairs, "val": pairs[:1], "test": pairs[:1]}
    for split, listed in some.items():
        write_pairs(tmp_path / SPLIT_FOLDER / f"{split}_pairs.txt", listed)
    write_metadata(
        tmp_path / METADATA, {split: tuple(Sample("a.jpg", pair) for pair in some[split]) for split in SPLITS}
    )
    outcome = cli("config", tmp_path, "--json")
    assert {row["source"] for row in outcome.json["settings"]} == {"default"}
    for name in ("few", "few-csp"):
        recipe = recipe_for(name)
        assert recipe is not None
        train = recipe[1]["train"]
        assert train["max_steps"] * train["batch_size"] == FEW_IN_ALL


def test_a_published_benchmark_is_known_in_a_folder_of_any_name(
    cli: Cli, small_demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = load_benchmark(small_demo)
    c_gqa = built_in().find("c-gqa").model_copy(update={"expected": Counts.of(benchmark)})
    changed = Catalogue(datasets={**built_in().datasets, "c-gqa": c_gqa})
    monkeypatch.setattr("refiner_cli.data.download.catalog_files.built_in", lambda: changed)
    outcome = cli("config", small_demo, "--method", "csp", "--json")
    assert f"recipe c-gqa-csp.toml: {small_demo} has the counts of c-gqa" in outcome.err
    rows = {row["key"]: row for row in outcome.json["settings"]}
    assert (rows["train.lr"]["value"], rows["train.optimizer"]["value"]) == (5e-5, "adam")


def test_a_training_starts_from_the_recipe_of_its_method_and_benchmark(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('method = "csp"\n')

    def rate(*options: object) -> tuple[object, str]:
        rows = {row["key"]: row for row in cli("config", "mit-states", *options, "--json").json["settings"]}
        return rows["train.lr"]["value"], rows["train.lr"]["source"]

    assert rate() == rate("--method", "troika-shared")
    assert rate("--method", "troika") == (1e-4, "mit-states-troika.toml")
    assert rate("--set", "method=coop") == (5e-5, "mit-states-coop.toml")
    assert rate("--config", file) == (5e-5, "mit-states-csp.toml")
    assert rate("--config", file, "--method", "refiner")[1] == "mit-states.toml"
