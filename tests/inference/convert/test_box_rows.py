"""Rows of boxes name their image; a column that is called like one of a box's makes no box of a row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from refiner_cli.data.image_file import IMAGE_SUFFIXES
from refiner_cli.inference.convert.answers import Answers
from refiner_cli.inference.convert.conversion import WRITERS, convert_answers
from refiner_cli.inference.convert.writer import ConvertOptions
from refiner_cli.inference.scan import ImageFile
from refiner_cli.inference.sources.boxes import read_boxes
from refiner_cli.inference.sources.noted import NotedPlaces
from tests.inference.convert.conftest import predicted


def answers_of(rows: Sequence[dict[str, Any]], photos: Path, file: Path) -> Answers:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Answers(file, NotedPlaces([str(photos)]))


def box_row(image: str, box: str = "0") -> dict[str, Any]:
    return predicted(f"{image}#{box}", ("ripe", "pear")) | {"inputs": {"image": image, "box": box}}


def test_rows_of_boxes_lead_to_their_images_in_every_format(photos: Path, tmp_path: Path) -> None:
    answers = answers_of([box_row("sub/a.jpg"), box_row("sub/a.jpg", "1/x")], photos, tmp_path / "rows.jsonl")
    options = ConvertOptions(url_prefix="https://h/")
    for to in ("label-studio", "image-folder", "csv"):
        target = tmp_path / f"{to}{WRITERS[to].suffix}"
        assert convert_answers(answers, WRITERS[to], target, options).images == 2
    tasks = json.loads((tmp_path / "label-studio" / "tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == ["https://h/sub/a.jpg"] * 2
    links = [file for file in (tmp_path / "image-folder").rglob("*") if file.is_file()]
    assert {file.resolve() for file in links} == {(photos / "sub" / "a.jpg").resolve()}
    assert len(links) == 2
    assert {file.suffix for file in links} <= IMAGE_SUFFIXES
    paths = [line.split(",")[0] for line in (tmp_path / "csv.csv").read_text().splitlines()[1:]]
    assert paths == [str(photos / "sub" / "a.jpg")] * 2


@pytest.mark.parametrize("inputs", [{"image": 7}, {"image": "b.jpg"}, {"image": "b.jpg", "box": "0"}])
def test_a_column_of_a_table_is_not_where_the_photo_lies(
    photos: Path, tmp_path: Path, inputs: dict[str, Any]
) -> None:
    row = predicted("a.jpg", ("ripe", "pear")) | {"inputs": inputs}
    (found,) = answers_of([row], photos, tmp_path / "rows.jsonl")
    assert (found.file, found.row.box) == (photos / "a.jpg", None)


def test_no_column_of_a_table_of_boxes_takes_the_place_of_the_image(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "boxes.csv"
    table.write_text("path,x,y,width,height,id,image,box\na.jpg,0,0,9,9,5,other,6\n")
    (crop,) = read_boxes(table).crops([ImageFile(photos / "a.jpg", "a.jpg", inputs={"image": "third"})])
    assert (crop.name, crop.inputs["image"], crop.inputs["box"]) == ("a.jpg#5", "a.jpg", "5")


def test_a_detectors_file_is_completed_whatever_it_calls_its_images(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def image(name: str, *classes: list[Any]) -> dict[str, Any]:
        return {"file": name, "detections": [
            {"category": "1", "conf": 0.9, "bbox": [0, 0, 1, 1]},
            {"category": "1", "conf": 0.1, "bbox": [0, 0, 1, 1], "classifications": list(classes)},
        ]}  # fmt: skip

    monkeypatch.chdir(photos.parent)
    names = {str(photos / "a.jpg"): "a.jpg", "sub\\a.jpg": "sub/a.jpg", "./sub_a.jpg": "sub_a.jpg",
             "photos/-x.jpg": "-x.jpg"}  # fmt: skip
    old = {"1": "lion", "2": "ripe pear", "5": "ape"}
    content = {"classification_categories": old, "images": [image(name, ["5", 0.8]) for name in names]}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    answers = answers_of([box_row(name) for name in names.values()], photos, tmp_path / "rows.jsonl")
    options = ConvertOptions(boxes=tmp_path / "boxes.json")
    made = convert_answers(answers, WRITERS["megadetector"], tmp_path / "out.json", options)
    assert (made.images, dict(answers.left_out)) == (4, {})
    after = json.loads((tmp_path / "out.json").read_text())
    classes = after["classification_categories"]
    assert {number: classes[number] for number in old} == old
    assert len(set(classes.values())) == len(classes)
    for one in after["images"]:
        first, second = one["detections"]
        assert [classes[number] for number, _ in first["classifications"]] == ["ripe pear", "raw pear"]
        assert second["classifications"] == [["5", 0.8]]
