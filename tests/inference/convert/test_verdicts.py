"""What a verdict leaves open is written as open by every format, and is no label when it is read back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refiner_cli.data.create.sources import read_photos
from refiner_cli.errors import DatasetError
from refiner_cli.inference.convert.answers import Answers
from refiner_cli.inference.convert.conversion import WRITERS, convert_answers
from refiner_cli.inference.convert.writer import ConvertOptions
from refiner_cli.inference.formats import FORMATS, format_of, read_rows
from refiner_cli.inference.sources.noted import NotedPlaces
from tests.inference.convert.conftest import predicted

# photo -> verdict, what it says of state and object; the best object alone is not that of the best pair.
SAID: dict[str, tuple[str, str | None, str | None]] = {
    "pair.jpg": ("pair", "ripe", "pear"),
    "object.jpg": ("object", None, "plum"),
    "state.jpg": ("state", "raw", None),
    "unknown.jpg": ("unknown", None, None),
}


def with_verdict(path: str, number: int) -> dict[str, Any]:
    row = predicted(path, ("ripe", "pear"), 0.5)
    verdict, state, name = SAID[path]
    row["states"] = [{"name": "raw", "probability": 0.6}, {"name": "ripe", "probability": 0.4}]
    row["objects"] = [{"name": "plum", "probability": 0.7}, {"name": "pear", "probability": 0.3}]
    box = {"image": path, "box": "0", "x": 0.1, "y": 0.1, "width": 0.5, "height": 0.5, "fractions": True}
    threshold = None if verdict == "unknown" else 0.45
    said = {"verdict": verdict, "verdict_state": state, "verdict_object": name, "threshold": threshold}
    return row | said | {"size": number, "inputs": box}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(SAID):
        Image.new("RGB", (8, 8), (number * 40, 90, 120)).save(folder / name)
    return folder


@pytest.fixture(params=[*FORMATS, "short.csv"])
def answers(photos: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Answers:
    """The rows in each format that predict writes."""
    file = tmp_path / f"rows.{request.param.removeprefix('.')}"
    rows = [with_verdict(path, number) for number, path in enumerate(SAID)]
    format_of(file, wide=request.param == ".csv", inputs=True).write(file, rows, 2)
    return Answers(file, NotedPlaces([str(photos)]))


def convert(answers: Answers, to: str, target: Path, **options: Any) -> Path:
    made = convert_answers(answers, WRITERS[to], target, ConvertOptions(**options))
    assert (made.images, dict(answers.left_out)) == (len(SAID), {})
    assert answers.verdicts == dict.fromkeys(("pair", "object", "state", "unknown"), 1)
    return target


def labelled(source: Path) -> tuple[dict[str, tuple[str, str]], str]:
    found = read_photos(source)
    assert found.unlabelled == ()
    return {photo.file.name: photo.pair for photo in found.photos}, " ".join(found.notes)


def test_label_studio_is_told_only_what_is_sure(answers: Answers, tmp_path: Path) -> None:
    folder = convert(answers, "label-studio", tmp_path / "out")
    tasks = json.loads((folder / "tasks.json").read_text("utf-8"))
    for task, (verdict, state, name) in zip(tasks, SAID.values(), strict=True):
        assert task["data"]["verdict"] == verdict
        given = [one for made in task["predictions"] for one in made["result"]]
        chosen = {one["from_name"]: one["value"]["choices"] for one in given}
        assert chosen == {role: [one] for role, one in (("state", state), ("object", name)) if one}
        assert all(0.45 <= made["score"] <= 1 for made in task["predictions"])
    exported = [  # a person accepted everything
        {"id": number, "data": task["data"],
         "annotations": [{"result": made["result"]} for made in task["predictions"]]}
        for number, task in enumerate(tasks)
    ]  # fmt: skip
    (tmp_path / "export.json").write_text(json.dumps(exported), "utf-8")
    pairs, notes = labelled(tmp_path / "export.json")
    assert pairs == {"pair.jpg": ("ripe", "pear")}
    assert "without a state and an object: 2" in notes


def test_fiftyone_leaves_open_fields_empty(answers: Answers, tmp_path: Path) -> None:
    folder = convert(answers, "fiftyone", tmp_path / "out")
    samples = json.loads((folder / "samples.json").read_text("utf-8"))["samples"]
    for sample, said in zip(samples, SAID.values(), strict=True):
        fields = [sample[role] and sample[role]["label"] for role in ("state", "object")]
        assert (sample["verdict"], *fields) == said
        assert (sample["pair"] and sample["pair"]["label"]) == ("ripe pear" if said[0] == "pair" else None)
        assert bool(sample["tags"]) == (said[0] == "pair")
        assert sample["pairs"]["classifications"][0]["label"] == "ripe pear"


def test_a_tree_has_a_folder_for_what_is_open(answers: Answers, tmp_path: Path) -> None:
    folder = convert(answers, "image-folder", tmp_path / "out", copy=True)
    assert sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.jpg")) == [
        "_unknown/plum/object.jpg", "_unknown/unknown.jpg", "raw/_unknown/state.jpg", "ripe/pear/pair.jpg",
    ]  # fmt: skip
    pairs, notes = labelled(folder)
    assert pairs == {"pair.jpg": ("ripe", "pear")}
    assert "photos in folders named _unknown: 3, passed over" in notes
    (folder / "ripe" / "plum").mkdir()
    (folder / "_unknown" / "plum" / "object.jpg").rename(folder / "ripe" / "plum" / "object.jpg")
    assert labelled(folder)[0] == {"pair.jpg": ("ripe", "pear"), "object.jpg": ("ripe", "plum")}


def test_a_table_has_empty_cells_that_can_be_filled_in(answers: Answers, tmp_path: Path) -> None:
    file = convert(answers, "csv", tmp_path / "out.csv")
    lines = file.read_text("utf-8").splitlines()
    header, *cells = (line.rpartition("/")[2] for line in lines)
    assert header == "path,state,object,probability,verdict"
    for line, (path, (verdict, state, name)) in zip(cells, SAID.items(), strict=True):
        assert line.startswith(f"{path},{state or ''},{name or ''},")
        assert line.endswith(f",{verdict}")
    pairs, notes = labelled(file)
    assert pairs == {"pair.jpg": ("ripe", "pear")}
    assert "by their verdict: 3, passed over" in notes
    file.write_text("\n".join(lines).replace(",,plum,", ",raw,plum,"), "utf-8")
    assert labelled(file)[0] == {"pair.jpg": ("ripe", "pear"), "object.jpg": ("raw", "plum")}
    file.write_text("\n".join(re.sub(",ripe,pear,", ",,pear,", line) for line in lines), "utf-8")
    with pytest.raises(DatasetError, match="the state is missing"):
        read_photos(file)


def test_a_source_of_open_verdicts_alone_is_refused(answers: Answers, tmp_path: Path) -> None:
    file = convert(answers, "csv", tmp_path / "out.csv")
    lines = file.read_text("utf-8").splitlines()
    file.write_text("\n".join([lines[0], *lines[2:]]), "utf-8")
    with pytest.raises(DatasetError, match="no images with a state and an object"):
        read_photos(file)
    (tmp_path / "tree" / "_unknown").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "tree" / "_unknown" / "a.jpg")
    with pytest.raises(DatasetError, match="no images outside of folders named _unknown"):
        read_photos(tmp_path / "tree")


def test_a_detection_gets_the_one_class_that_is_sure(answers: Answers, tmp_path: Path) -> None:
    rows = [row | {"path": f"{row['path']}#0"} for row in read_rows(answers.file)]
    wide = answers.file.name == "rows.csv"
    format_of(answers.file, wide=wide, inputs=True).write(answers.file, rows, 2)
    made = json.loads(convert(answers, "megadetector", tmp_path / "out.json").read_text("utf-8"))
    names = made["classification_categories"]
    for image, (verdict, state, name) in zip(made["images"], SAID.values(), strict=True):
        (detection,) = image["detections"]
        said = " ".join(filter(None, (state, name)))
        assert [names[number] for number, _ in detection["classifications"]] == ([said] if said else [])
        assert all(probability >= 0.45 for _, probability in detection["classifications"])
        assert detection["verdict"] == verdict


def test_cleanlab_needs_probabilities_and_no_verdict(answers: Answers, photos: Path, tmp_path: Path) -> None:
    given = {photos / name: ("ripe", "pear") for name in SAID}
    if answers.file.name == "rows.short.csv":
        with pytest.raises(DatasetError, match="lists no probabilities"):
            convert(answers, "cleanlab", tmp_path / "out.npz", labels=given)
        return
    with np.load(convert(answers, "cleanlab", tmp_path / "out.npz", labels=given)) as data:
        assert len(data["object_labels"]) == len(SAID)
        assert np.ptp(data["object_pred_probs"], axis=0).max() == 0
