"""A few photos: the recipe that is chosen for them, training without validation, and from kept vectors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from refiner_cli.core.model_io.checkpoint import read_model, read_tensors
from refiner_cli.core.model_io.zero_shot import zero_shot_model
from refiner_cli.core.models.base import Calibration
from refiner_cli.core.runtime.device import RuntimeOptions
from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.data.create.create import SplitOptions, split_photos
from refiner_cli.data.create.photos import Photo
from refiner_cli.errors import DatasetError, UsageError
from refiner_cli.evaluation.scoring import measure_split
from refiner_cli.inference.index import Index
from refiner_cli.inference.labelled_index import labelled_benchmark
from refiner_cli.training.run_dir import Run, model_folder
from tests.conftest import Cli
from tests.guide.examples import draw_photos

ONE_STEP = ["--set", "train.max_steps=1"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pairs, five images each, in ``state_object/`` folders."""
    folder = tmp_path_factory.mktemp("few") / "photos"
    draw_photos(folder)
    return folder


@pytest.fixture(scope="module")
def index(photos: Path) -> Path:
    """Their vectors on the tiny backbone."""
    from refiner_cli.__main__ import main

    folder = photos.with_name("index")
    with pytest.raises(SystemExit) as left:
        main(["-q", "index", "tiny", str(photos), "-o", str(folder)])
    assert not left.value.code
    return folder


@pytest.fixture(scope="module")
def labels(photos: Path) -> Path:
    """A table of them; the first image of a pair is for testing, the last for validation."""
    file = photos.with_name("labels.csv")
    splits = ["test", "train", "train", "train", "val"]
    rows = [
        f"{photo.relative_to(photos).as_posix()},{','.join(photo.parent.name.split('_'))},{splits[i]}"
        for folder in sorted(photos.iterdir())
        for i, photo in enumerate(sorted(folder.iterdir()))
    ]
    file.write_text("path,state,object,split\n" + "\n".join(rows) + "\n")
    return file


def test_the_recipe_for_few_images_is_chosen_and_named(cli: Cli, photos: Path, tmp_path: Path) -> None:
    assert (
        cli("-q", "dataset", "create", photos, "--out", tmp_path / "data", "--unseen-fraction", 0).code == 0
    )
    images = load_benchmark(tmp_path / "data").images_per_pair()
    assert images in {3, 3.5, 4}  # of five
    listed = cli("config", tmp_path / "data", "--json")
    assert f"settings of the recipe few.toml: {images:g} images a pair, 16 or fewer" in listed.err
    sources = {row["key"]: row["source"] for row in listed.json["settings"]}
    assert sources["train.lr"] == "few.toml"
    assert "recipe few-csp.toml" in cli("config", tmp_path / "data", "--method", "csp").err
    assert "recipe few" not in cli("config", tmp_path / "data", "--config", "own").err


def test_all_photos_may_be_for_training(cli: Cli, photos: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    made = cli("dataset", "create", photos, "--out", data, "--all-train", "--json")
    assert made.code == 0, made.err
    benchmark = load_benchmark(data)
    assert [len(benchmark.samples[split]) for split in ("train", "val", "test")] == [60, 0, 0]
    plain = ["--set", "train.max_steps=4", "--set", "calibration.folds=0"]
    done = cli("train", data, "--backbone", "tiny", *plain, "--out", run, "--json")
    assert done.code == 0, done.err
    assert "There are no validation images: the best checkpoint is selected by the training loss" in done.err
    assert "nothing is calibrated" in done.err
    assert done.json["criterion"] == "loss"
    assert done.json["best_step"] == 4
    model, _ = read_model(model_folder(run))
    # The first values of the recipe's lists.
    first = Calibration(state_weight=0.5, object_weight=0.5, wise_ft_alpha=0.5, tta_shifts=4)
    assert model.calibration == replace(first, chosen_on="nothing")
    assert cli("-q", "predict", run, photos / "wet_pear", "--format", "jsonl").out.count('"ok"') == 5
    refused = cli("eval", run)
    assert refused.code == DatasetError.exit_code
    assert "has no images for the split 'test'" in refused.err
    assert cli("export", run, tmp_path / "model", "--no-backbone").code == 0


def test_without_unseen_pairs_seen_pairs_are_measured(cli: Cli, photos: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    cli("-q", "dataset", "create", photos, "--out", data, "--unseen-fraction", 0)
    done = cli("train", data, "--backbone", "tiny", "--method", "csp", *ONE_STEP, "--out", run, "--json")
    assert done.code == 0, done.err
    assert done.json["criterion"] == "S"
    assert done.json["val"]["AUC"] is None
    measured = cli("eval", run, "--world", "closed", "--bootstrap-samples", 10, "--json")
    assert measured.code == 0, measured.err
    assert measured.json["worlds"]["closed"]["S"] is not None


def test_splits_of_a_users_choice_may_lack_all_but_training(photos: Path) -> None:
    found = [Photo(file, ("wet", "pear"), "train") for file in (photos / "wet_pear").iterdir()]
    parts = split_photos(found, SplitOptions())
    assert [len(parts[split]) for split in ("train", "val", "test")] == [5, 0, 0]
    with pytest.raises(DatasetError, match="train"):
        split_photos([Photo(photo.file, photo.pair, "test") for photo in found], SplitOptions())


@pytest.mark.parametrize("method", ["csp", "coop"])
def test_training_from_vectors_is_training_on_the_images(
    cli: Cli, photos: Path, index: Path, labels: Path, tmp_path: Path, method: str
) -> None:
    fixed = ["--method", method, "--set", "train.max_steps=3", "--set", "train.eval_every=99", "--lr", 1e-2,
             "--set", "train.augment=none", "--batch-size", 16]  # fmt: skip
    ours = cli("train", index, "--labels", labels, *fixed, "--out", tmp_path / "vectors", "--json")
    assert ours.code == 0, ours.err
    config = Run.open(tmp_path / "vectors").config
    assert (config.backbone, config.pretrained) == ("tiny", "built-in")
    table = photos / "table.csv"
    table.write_text(labels.read_text())
    assert cli("-q", "dataset", "create", table, "--out", tmp_path / "data").code == 0
    table.unlink()
    theirs = cli(
        "train", tmp_path / "data", "--backbone", "tiny", *fixed, "--out", tmp_path / "images", "--json"
    )
    assert theirs.code == 0, theirs.err
    for metric in ("S", "state_acc"):
        assert ours.json["val"][metric] == pytest.approx(theirs.json["val"][metric], abs=10)
    first, second = (read_tensors(model_folder(tmp_path / run)) for run in ("vectors", "images"))
    assert first.keys() == second.keys()
    # The order of the images differs, and with it the batches: the direction of learning does not.
    for name, value in first.items():
        start = read_tensors(Run.open(tmp_path / "vectors").checkpoints()[0])[name]
        moved = torch.cosine_similarity((value - start).flatten(), (second[name] - start).flatten(), 0)
        assert moved > 0.5, name


def test_a_run_on_an_index_resumes_and_is_measured_without_the_table(
    cli: Cli, index: Path, labels: Path, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(labels.read_text())
    run = tmp_path / "run"
    done = cli("train", index, "--labels", table, *ONE_STEP, "--out", run, "--json")
    assert done.code == 0, done.err
    assert Run.open(run).config.method == "csp"
    table.unlink()
    assert len((run / "labels.jsonl").read_text().splitlines()) == 60
    again = cli("train", "--resume", "--out", run, "--json")
    assert again.code == 0, again.err
    calibrated = cli("-q", "calibrate", run, "--set", "calibration.wise_ft_alpha=[1.0]", "--json")
    assert calibrated.code == 0, calibrated.err
    assert Run.open(run).dataset.labels == "labels.jsonl"
    measured = cli("eval", run, "--world", "closed", "--bootstrap-samples", 10, "--json")
    assert measured.code == 0, measured.err
    assert measured.json["worlds"]["closed"]["n_seen"] == 12
    twin = shutil.copytree(run, tmp_path / "twin")
    compared = cli("compare", run, twin, "--world", "closed", "--bootstrap-samples", 2, "--json")
    assert compared.code == 0, compared.err
    assert [one["worlds"]["closed"]["n_seen"] for one in compared.json["runs"]] == [12, 12]


def test_without_splits_pairs_and_images_are_held_out(index: Path, labels: Path, tmp_path: Path) -> None:
    rows = [line.rsplit(",", 1)[0] for line in labels.read_text().splitlines()]
    (tmp_path / "plain.csv").write_text("\n".join(rows) + "\n")
    made = labelled_benchmark(Index.open(index), tmp_path / "plain.csv")
    assert set(made.pairs["test"]) - set(made.pairs["train"])
    assert sum(map(len, made.samples.values())) == 60
    model, _ = zero_shot_model("tiny", made.vocabulary)
    space = made.label_space("test")
    runtime = RuntimeOptions(torch.float32, 7, 0)
    kept = measure_split(model, made, "test", {"closed": space}, runtime)["closed"].summary
    assert len(kept) == len(made.samples["test"])


def test_what_cannot_be_trained_from_vectors(
    cli: Cli, index: Path, labels: Path, photos: Path, small_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for arguments, sentence in (
        (
            [index, "--labels", labels, "--method", "refiner"],
            "The method refiner learns inside the image tower",
        ),
        ([index], "is an index, which says nothing of states and objects"),
        ([photos, "--labels", labels], "--labels needs an index"),
    ):
        done = cli("train", *arguments, "--out", run)
        assert (done.code, sentence in done.err, run.exists()) == (UsageError.exit_code, True, False), (
            done.err
        )
    assert cli("-q", "index", small_run, photos / "wet_pear", "-o", tmp_path / "trained").code == 0
    done = cli("train", tmp_path / "trained", "--labels", labels, "--out", run)
    assert (done.code, "come from a trained refiner" in done.err) == (UsageError.exit_code, True)
    (tmp_path / "odd.jsonl").write_text(json.dumps({"path": "no/such.jpg", "state": "wet", "object": "pear"}))
    done = cli("train", index, "--labels", tmp_path / "odd.jsonl", "--out", run)
    assert (done.code, "has no readable image no/such.jpg" in done.err) == (DatasetError.exit_code, True)
