from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refiner_cli.data.benchmark import (
    METADATA,
    Sample,
    Split,
    load_benchmark,
    read_metadata,
    read_pairs,
    save_rows,
    write_pairs,
)
from refiner_cli.errors import DatasetError
from tests.data.download import published

ROWS = [{"image": "a/1.jpg", "attr": "ripe", "obj": "apple", "set": "train", "_image": "Brand/1.jpg"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pairs = published.tiny_pairs()
    for name, content in published.split_files("", pairs, published.rows_of(pairs)).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_rows_that_do_not_count_are_skipped(folder: Path) -> None:
    benchmark = load_benchmark(folder)
    assert {split: len(found) for split, found in benchmark.samples.items()} == {
        "train": 4,
        "val": 2,
        "test": 2,
    }


def test_images_are_split_by_their_rows_and_not_by_the_pair_lists(folder: Path) -> None:
    """A pair of test occurs in train, too; its training images are no test images."""
    test = load_benchmark(folder).samples["test"]
    assert {sample.path.split("/")[1].split("_")[0] for sample in test} == {"test"}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_image_whose_pair_is_not_in_the_lists_of_its_split_is_named(folder: Path, split: Split) -> None:
    whole = load_benchmark(folder)
    other = Sample("odd.jpg", ("never", "listed"))
    odd = replace(whole, samples={**whole.samples, split: (*whole.samples[split], other)})
    with pytest.raises(DatasetError, match=rf"odd\.jpg of the split '{split}' .* shows never listed"):
        odd.label_space(split)
    assert odd.label_space("test" if split != "test" else "val").pairs


@pytest.mark.parametrize("text", ["ripe apple\n\ncut pear\n", "ripe  apple\r\ncut\tpear"])
def test_pair_lists(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.txt").write_text(text, newline="")
    assert read_pairs(tmp_path / "p.txt") == (("ripe", "apple"), ("cut", "pear"))


def test_pair_lists_with_another_separator_hold_spaces(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("light blue+tennis racket\nold+cup\n")
    assert read_pairs(tmp_path / "p.txt", "+") == (("light blue", "tennis racket"), ("old", "cup"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ripe apple\nripe\n", "line 2: 'ripe' is not a pair"),
        ("ripe red apple\n", "line 1"),
        ("ripe apple\ncut pear\nripe apple\n", "line 3: 'ripe apple' is already in line 1"),
        ("\n", "is empty"),
        (b"\xff", "line 1 holds the byte 0xff"),
    ],
)
def test_mistakes_in_a_pair_list_are_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / "p.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=message):
        read_pairs(tmp_path / "p.txt")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_pairs(tmp_path / "p.txt", (("b", "c"), ("a", "d")))
    assert (tmp_path / "p.txt").read_bytes() == b"b c\na d\n"
    assert read_pairs(tmp_path / "p.txt") == (("b", "c"), ("a", "d"))
    save_rows(tmp_path / "m.t7", ROWS)
    assert read_metadata(tmp_path / "m.t7") == ROWS


def test_metadata_in_the_old_format_of_torch_is_read(tmp_path: Path) -> None:
    """The published files were written years ago."""
    torch.save(ROWS, tmp_path / "m.t7", _use_new_zipfile_serialization=False)
    assert read_metadata(tmp_path / "m.t7") == ROWS


class Call:
    """A pickle that calls something when it is read."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_that_runs_a_command_is_an_error_and_not_an_event(tmp_path: Path, old: bool) -> None:
    evil = tmp_path / "evil"
    for call in (Call(os.system, f"touch {evil}"), Call(eval, f"open({str(evil)!r}, 'w')"), Call(evil.touch)):
        torch.save([call], tmp_path / "m.t7", _use_new_zipfile_serialization=not old)
        with pytest.raises(DatasetError, match="cannot be read safely") as caught:
            read_metadata(tmp_path / "m.t7")
        assert caught.value.exit_code == 3
        assert not evil.exists()


def test_a_bare_pickle_with_a_command_is_an_error_too(tmp_path: Path) -> None:
    (tmp_path / "m.t7").write_bytes(pickle.dumps([Call(os.system, f"touch {tmp_path / 'evil'}")]))
    with pytest.raises(DatasetError, match="cannot be read safely"):
        read_metadata(tmp_path / "m.t7")
    assert not (tmp_path / "evil").exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@given(data=st.data(), old=st.booleans())
def test_no_broken_metadata_raises_anything_else(tmp_path: Path, data: st.DataObject, old: bool) -> None:
    torch.save(ROWS, tmp_path / "m.t7", _use_new_zipfile_serialization=not old)
    raw = bytearray((tmp_path / "m.t7").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "m.t7").write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        rows = read_metadata(tmp_path / "m.t7")
    except DatasetError:
        return
    assert all({"image", "attr", "obj", "set"} <= set(row) for row in rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"image": "x"}, "does not hold a list"),
        ([{"image": "x", "attr": "a", "obj": "b"}], "row 0: the keys"),
        ([*ROWS, {"image": "x", "attr": "a", "obj": "b", "set": 3}], "row 1: the keys"),
        ([["image"]], "row 0"),
    ],
)
def test_metadata_of_another_shape_is_refused(tmp_path: Path, rows: object, message: str) -> None:
    torch.save(rows, tmp_path / "m.t7")
    with pytest.raises(DatasetError, match=message):
        read_metadata(tmp_path / "m.t7")


@pytest.mark.parametrize("image", ["../secret.jpg", "/etc/passwd", "C:\\secret.jpg", ""])
def test_metadata_that_reads_outside_its_folder_is_refused(folder: Path, image: str) -> None:
    rows = read_metadata(folder / METADATA)
    rows[0]["image"] = image
    save_rows(folder / METADATA, rows)
    with pytest.raises(DatasetError, match="is refused: it names the image"):
        load_benchmark(folder)


def test_missing_parts_are_named(folder: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere does not exist"):
        load_benchmark(folder / "nowhere")
    (folder / METADATA).unlink()
    with pytest.raises(DatasetError, match=r"metadata file .* does not exist"):
        load_benchmark(folder)
    (folder / "compositional-split-natural/val_pairs.txt").unlink()
    with pytest.raises(DatasetError, match=r"val_pairs\.txt does not exist"):
        load_benchmark(folder)


def test_a_photo_folder_is_told_the_command_that_makes_a_dataset_of_it(tmp_path: Path) -> None:
    (tmp_path / "photos/red_apple").mkdir(parents=True)
    with pytest.raises(DatasetError, match="photos is not a dataset") as caught:
        load_benchmark(tmp_path / "photos")
    assert f"refiner dataset create {tmp_path / 'photos'} --out" in caught.value.hint


def test_a_split_without_images_is_refused(folder: Path) -> None:
    save_rows(folder / METADATA, [row for row in read_metadata(folder / METADATA) if row["set"] != "val"])
    with pytest.raises(DatasetError, match="no image for the split 'val'"):
        load_benchmark(folder)


def test_the_fingerprint_follows_every_label(folder: Path) -> None:
    before = load_benchmark(folder).fingerprint()
    rows = read_metadata(folder / METADATA)
    rows[0]["image"] += "x"
    save_rows(folder / METADATA, rows)
    assert load_benchmark(folder).fingerprint() != before
