from __future__ import annotations

import shutil
from pathlib import Path
from threading import Event

import pytest

from refiner_cli.data.benchmark import METADATA, SPLIT_FOLDER, load_benchmark, read_metadata, save_rows
from refiner_cli.data.download.catalog import Counts, Dataset, Vectors
from refiner_cli.data.download.catalog_files import built_in
from refiner_cli.data.download.verify import Verification, structure, verify, verify_vectors
from refiner_cli.errors import DatasetError
from tests.data.conftest import Log
from tests.data.download import published


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The eight images of six pairs, as a benchmark folder."""
    pairs = published.tiny_pairs()
    rows = published.rows_of(pairs, "{state}_{obj}/{split}{number}.jpg")
    for name, content in published.split_files("", pairs, rows).items():
        (tmp_path / "tiny" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tiny" / name).write_bytes(content)
    for row in rows:
        file = tmp_path / "tiny/images" / row["image"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(published.photo())
    return tmp_path / "tiny"


def check(folder: Path, dataset: Dataset | None = None) -> Verification:
    return verify(folder, dataset, workers=1, report=Log(), stop=Event())


def test_a_whole_benchmark(folder: Path) -> None:
    found = check(folder)
    assert found.usable
    assert found.summary() == ""
    assert found.counts == Counts(
        states=2,
        objects=3,
        train_pairs=4,
        val_seen_pairs=1,
        val_unseen_pairs=1,
        test_seen_pairs=1,
        test_unseen_pairs=1,
        train_images=4,
        val_images=2,
        test_images=2,
    )
    assert found.to_json()["counts"]["train_images"] == 4


def test_grocery(grocery: Path) -> None:
    found = check(grocery)
    assert found.usable
    assert found.unreadable == ()
    assert (found.counts.states, found.counts.objects, found.counts.train_pairs) == (6, 21, 23)
    assert (found.counts.val_unseen_pairs, found.counts.test_unseen_pairs) == (2, 4)
    assert (found.counts.train_images, found.counts.val_images, found.counts.test_images) == (831, 381, 469)


def test_missing_and_unreadable_images_are_listed(folder: Path) -> None:
    (folder / "images/ripe_apple/train0.jpg").unlink()
    (folder / "images/cut_pear/train1.jpg").write_bytes(b"torn")
    found = check(folder)
    assert not found.usable
    assert found.missing == ("ripe_apple/train0.jpg",)
    assert [fault.path for fault in found.unreadable] == ["cut_pear/train1.jpg"]
    assert "1 image is missing, for example 'ripe_apple/train0.jpg'" in found.summary()


def test_other_numbers_than_published_are_problems(folder: Path) -> None:
    dataset = built_in().find("ut-zappos")
    found = check(folder, dataset)
    assert "states: 2, expected 16" in found.problems
    assert "train images: 4, expected 22998" in found.problems
    assert len(found.problems) == 10


def test_numbers_that_nobody_knows_are_not_expected() -> None:
    assert Counts(states=2, objects=3).differences(Counts(states=2)) == []


def test_another_split_file_than_published_is_a_problem(folder: Path) -> None:
    dataset = built_in().find("c-gqa").model_copy(update={"expected": Counts()})
    assert [problem.split(" ")[0] for problem in check(folder, dataset).problems] == [
        "train_pairs.txt",
        "val_pairs.txt",
        "test_pairs.txt",
    ]


def test_the_published_c_gqa_split_files_are_recognised(splits: Path, folder: Path) -> None:
    for split in ("train", "val", "test"):
        shutil.copy(splits / f"cgqa/{split}_pairs.txt", folder / SPLIT_FOLDER)
    rows = [
        {"image": f"{split}.jpg", "attr": pair.split()[0], "obj": pair.split()[1], "set": split}
        for split in ("train", "val", "test")
        for pair in [(folder / SPLIT_FOLDER / f"{split}_pairs.txt").read_text().splitlines()[0]]
    ]
    save_rows(folder / METADATA, rows)
    problems = check(folder, built_in().find("c-gqa")).problems
    assert [problem.split(":")[0] for problem in problems] == ["train images", "val images", "test images"]


def test_a_name_without_a_training_pair_is_a_problem(folder: Path) -> None:
    file = folder / SPLIT_FOLDER / "test_pairs.txt"
    file.write_text("cut apple\nraw fish\n")
    rows = read_metadata(folder / METADATA)
    save_rows(folder / METADATA, [*rows, {"image": "1.jpg", "attr": "raw", "obj": "fish", "set": "test"}])
    problems, _ = structure(load_benchmark(folder))
    assert problems == ["1 state (raw) is in no training pair", "1 object (fish) is in no training pair"]


@pytest.mark.parametrize(
    ("split", "lists"), [("train", "train_pairs.txt"), ("val", "val_pairs.txt or train_pairs.txt")]
)
def test_an_unseen_pair_of_another_split_is_a_problem(folder: Path, split: str, lists: str) -> None:
    benchmark = load_benchmark(folder)
    known = {*benchmark.pairs["train"], *benchmark.pairs["val"]}
    rows = read_metadata(folder / METADATA)
    leaked = next(row for row in rows if row["set"] == "test" and (row["attr"], row["obj"]) not in known)
    save_rows(folder / METADATA, [*rows, {**leaked, "set": split}])
    problems, _ = structure(load_benchmark(folder))
    assert problems == [f"1 image ({leaked['image']}) is in {split} with a pair that is not in {lists}"]


def test_oddities_are_notes(folder: Path) -> None:
    rows = read_metadata(folder / METADATA)
    rows[0]["image"] = "somewhere/else.jpg"
    rows[1]["image"] = rows[2]["image"]
    rows = [row for row in rows if (row["attr"], row["obj"], row["set"]) != ("cut", "pear", "train")]
    save_rows(folder / METADATA, rows)
    (folder / SPLIT_FOLDER / "val_pairs.txt").write_text("ripe apple\nripe pear\nRipe plum\n")
    _, notes = structure(load_benchmark(folder))
    assert notes == [
        "1 state (ripe) is spelt in upper and in lower case",
        "1 pair (cut pear) is without an image in train",
        "1 pair (Ripe plum) is without an image in val",
        "1 image (ripe_apple/train0.jpg) is listed more than once",
        "2 images (somewhere/else.jpg, ripe_apple/train0.jpg) are in a folder not named after the pair",
    ]


def test_the_first_release_of_c_gqa_is_refused_when_it_lies_there_already(folder: Path) -> None:
    states, objects = [f"s{n}" for n in range(453)], [f"o{n}" for n in range(870)]
    train = [f"{states[n % 453]} {objects[n % 870]}" for n in range(6963)]
    (folder / SPLIT_FOLDER / "train_pairs.txt").write_text("\n".join(train))
    for split in ("val", "test"):
        (folder / SPLIT_FOLDER / f"{split}_pairs.txt").write_text(train[0])
    save_rows(
        folder / METADATA,
        [{"image": s, "attr": "s0", "obj": "o0", "set": s} for s in ("train", "val", "test")],
    )
    with pytest.raises(DatasetError, match=r"first release of C-GQA .* must not be used") as caught:
        check(folder, built_in().find("c-gqa"))
    assert "refiner download c-gqa" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (b"a 0.1 0.2\nb 1 2\n", []),
        (b"a 0.1 0.2\n", ["v.txt holds 1 words, expected 2"]),
        (b"a 0.1 0.2\nb 1\n", ["line 2 of v.txt does not hold a word and 2 numbers"]),
        (b"", ["v.txt holds 0 words, expected 2"]),
    ],
)
def test_word_vectors(tmp_path: Path, log: Log, stop: Event, text: bytes, problems: list[str]) -> None:
    (tmp_path / "v.txt").write_bytes(text)
    assert verify_vectors(tmp_path / "v.txt", Vectors(words=2, dimensions=2), log, stop) == problems
