"""``refiner dataset create``: own photos, and then training on them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from PIL import Image

from refiner_cli.data.benchmark import load_benchmark
from tests.conftest import Cli


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three states of three objects, four photos each."""
    pairs = itertools.product(("red", "old", "wet"), ("car", "dog", "tin can"))
    for index, (state, obj) in enumerate(pairs):
        folder = tmp_path / "photos" / state / obj
        folder.mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (24, 24), (60 * number, 90, 20 * index)).save(folder / f"{number}.jpg")
    return tmp_path / "photos"


def test_own_photos_become_a_dataset_to_train_on(cli: Cli, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    told = cli(
        "dataset", "create", photos, "--out", out, "--unseen-fraction", 0.4, "--seed", 3, "--json"
    ).json
    assert (told["schema"], told["usable"], told["linked"]) == ("refiner.dataset-create/1", True, 36)
    assert told["counts"]["val_unseen_pairs"] + told["counts"]["test_unseen_pairs"] == 4
    run = cli("train", out, "--backbone", "tiny", "--set", "train.max_steps=1", "--out", tmp_path / "run")
    assert run.code == 0
    assert cli("info", out, "--json").json["objects"] == 3


def test_named_pairs_are_the_unseen_ones(cli: Cli, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "unseen.txt").write_text("red dog\nwet tin_can\n")
    out = tmp_path / "mine"
    assert cli("dataset", "create", photos, "--out", out, "--unseen-pairs", tmp_path / "unseen.txt").code == 0
    made = load_benchmark(out)
    assert {*made.vocabulary.pairs} - {*made.pairs["train"]} == {("red", "dog"), ("wet", "tin.can")}


def test_an_unreadable_photo_is_left_out_and_told(cli: Cli, photos: Path, tmp_path: Path) -> None:
    (photos / "red/car/torn.jpg").write_bytes(b"\xff\xd8\xff")
    outcome = cli("dataset", "create", photos, "--out", tmp_path / "mine", "--copy", "--json")
    assert [Path(fault["path"]).name for fault in outcome.json["left_out"]] == ["torn.jpg"]
    assert outcome.json["copied"] == 36


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nowhere"], 3, "There is no file or folder nowhere"),
        (["PHOTOS", "--unseen-fraction", 0.9], 3, "every state and every object must occur in training"),
        (["PHOTOS", "--unseen-fraction", 2], 2, "from 0 to below 1"),
        (["PHOTOS", "--unseen-pairs", "nowhere.txt"], 3, "nowhere.txt does not exist"),
        (["PHOTOS", "--unseen-pairs", "x", "--unseen-fraction", 0.1], 2, "exclude each other"),
        (["PHOTOS", "--images", "elsewhere"], 2, "--images is for a table or an export"),
    ],
)
def test_a_mistake_is_one_sentence_and_makes_nothing(
    cli: Cli, photos: Path, tmp_path: Path, arguments: list[object], code: int, says: str
) -> None:
    given = [photos if argument == "PHOTOS" else argument for argument in arguments]
    outcome = cli("dataset", "create", *given, "--out", tmp_path / "mine")
    assert (outcome.code, outcome.out) == (code, "")
    assert says in outcome.err
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("option", [("--unseen-fraction", 0.1), ("--unseen-pairs", "UNSEEN")])
def test_splits_of_the_user_leave_no_unseen_pair_to_choose(
    cli: Cli, photos: Path, tmp_path: Path, option: tuple[str, object]
) -> None:
    (tmp_path / "unseen.txt").write_text("red dog\n")
    rows = ["path,state,object,split"]
    for number, file in enumerate(sorted(photos.rglob("*.jpg"))):
        state, obj = file.relative_to(photos).parts[:2]
        rows.append(
            f"{file.relative_to(photos)},{state},{obj},{('train', 'val', 'train', 'test')[number % 4]}"
        )
    (photos / "table.csv").write_text("\n".join(rows))
    value = tmp_path / "unseen.txt" if option[1] == "UNSEEN" else option[1]
    outcome = cli("dataset", "create", photos / "table.csv", option[0], value, "--out", tmp_path / "mine")
    assert outcome.code == 2
    assert f"gives every photo its split, so {option[0]} could choose no pair" in outcome.err
    assert not (tmp_path / "mine").exists()


def test_what_is_left_out_is_named_and_makes_it_partly_done(cli: Cli, photos: Path, tmp_path: Path) -> None:
    (photos / "red/car/torn.jpg").write_bytes(b"\xff\xd8\xff")
    (photos / "loose.jpg").write_bytes((photos / "red/car/0.jpg").read_bytes() + b"other")
    (photos / "old/dog/again.jpg").write_bytes((photos / "old/dog/1.jpg").read_bytes())
    outcome = cli("dataset", "create", photos, "--out", tmp_path / "mine")
    assert outcome.code == 5
    assert outcome.out == f"{tmp_path / 'mine'}\n"
    for said in ("torn.jpg (", "not in a folder that names a pair: ", "the same photo again: ",
                 "unseen pairs in test: '", "36 images linked, 0 copied, 3 left out",
                 f"next: refiner train {tmp_path / 'mine'}"):  # fmt: skip
        assert said in outcome.err
    again = cli("dataset", "create", photos, "--out", tmp_path / "other", "--json")
    assert again.code == 5
    assert [Path(path).name for path in again.json["unlabelled"]] == ["loose.jpg"]
    assert Path(again.json["repeated"][0]["path"]).name == "again.jpg"
    assert sum(map(len, again.json["unseen"].values())) == 2


@pytest.mark.parametrize("place", [".", "data", "red/new"])
def test_the_output_may_not_lie_among_the_photos(cli: Cli, photos: Path, place: str) -> None:
    outcome = cli("dataset", "create", photos, "--out", photos / place)
    assert outcome.code == 2
    assert "lies in the photo folder" in outcome.err
    assert not (photos / "data").exists()


def test_unseen_pairs_are_found_under_any_spelling(cli: Cli, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "unseen.txt").write_bytes("\ufeff# ours\r\nRED, Dog\r\nwet\tTin-Can\r\n".encode())
    out = tmp_path / "mine"
    assert cli("dataset", "create", photos, "--out", out, "--unseen-pairs", tmp_path / "unseen.txt").code == 0
    made = load_benchmark(out)
    assert {*made.vocabulary.pairs} - {*made.pairs["train"]} == {("red", "dog"), ("wet", "tin.can")}


def test_what_training_cannot_measure_is_said(cli: Cli, photos: Path, tmp_path: Path) -> None:
    outcome = cli("dataset", "create", photos, "--out", tmp_path / "mine", "--unseen-fraction", 0)
    assert "val holds no unseen pair, so AUC and HM are undefined there: training selects" in outcome.err
    assert "test holds no unseen pair" in outcome.err
    assert "undefined" not in cli("dataset", "create", photos, "--out", tmp_path / "other").err


def test_check_names_everything_at_once(cli: Cli, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    cli("dataset", "create", photos, "--out", out, "--copy")
    assert cli("dataset", "check", out).out == "mine: 36 images, no problems\n"
    images = sorted((out / "images").rglob("*.jpg"))
    images[0].write_bytes(b"P6 8 8 255 ")
    images[5].write_bytes(b"")
    outcome = cli("dataset", "check", out)
    assert (outcome.code, outcome.out) == (5, "mine: 36 images, 2 problems\n")
    assert outcome.err.count("unreadable: ") == 2
    images[7].unlink()
    outcome = cli("dataset", "check", out, "--json")
    assert outcome.code == 3
    assert outcome.json["schema"] == "refiner.dataset-check/1"
    assert outcome.json["missing"] == [images[7].relative_to(out / "images").as_posix()]
    assert cli("dataset", "check", photos).code == 3
