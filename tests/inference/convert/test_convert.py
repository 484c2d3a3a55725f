"""Every format holds every answer, reads back as the same labels, and names nothing outside its folder."""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from refiner_cli.cli.convert import Format
from refiner_cli.data.create.label_studio import read_export
from refiner_cli.data.create.sources import read_photos
from refiner_cli.data.labels import Pair, name_key
from refiner_cli.errors import DatasetError, UsageError
from refiner_cli.inference.convert.answers import Answers, noted_places
from refiner_cli.inference.convert.cleanlab import fill_probabilities
from refiner_cli.inference.convert.conversion import WRITERS, check_target, convert_answers
from refiner_cli.inference.convert.writer import ConvertOptions
from refiner_cli.inference.sources.noted import NotedPlaces
from tests.conftest import Cli
from tests.inference.convert.conftest import PHOTOS, predicted, ranked


def convert(answers: Answers, to: str, target: Path, **options: Any) -> Path:
    check_target(WRITERS[to], target, answers)
    made = convert_answers(answers, WRITERS[to], target, ConvertOptions(**options))
    assert made.images == len(PHOTOS)
    assert dict(answers.left_out) == {"could not be read by predict": 1}
    return target


def keys(pairs: dict[Path, Pair]) -> dict[Path, tuple[str, ...]]:
    return {file: tuple(map(name_key, pair)) for file, pair in pairs.items()}


def expected(photos: Path) -> dict[Path, tuple[str, ...]]:
    return keys({photos / name: pair for name, pair in PHOTOS.items()})


def labels(source: Path, images: Path | None = None) -> dict[Path, Pair]:
    found = read_photos(source, images).photos
    pairs = {photo.file.resolve(): photo.pair for photo in found}
    assert len(pairs) == len(found)
    return pairs


def annotated(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What Label Studio exports after a person accepted every pre-annotation."""
    return [
        {
            "id": number,
            "data": task["data"],
            "annotations": [{"id": 7, "was_cancelled": False, "result": task["predictions"][0]["result"]}],
            "predictions": [],
        }
        for number, task in enumerate(tasks, 1)
    ]


def test_the_command_offers_every_format() -> None:
    assert set(get_args(Format)) == set(WRITERS)


def test_label_studio_tasks_fit_their_configuration_and_read_back(
    answers: Answers, photos: Path, tmp_path: Path
) -> None:
    folder = convert(answers, "label-studio", tmp_path / "out", states=["unripe", "Half-Eaten"])
    view = ET.fromstring((folder / "labelling.xml").read_text("utf-8"))  # noqa: S314 - our own
    choices = {group.get("name"): {choice.get("value") for choice in group} for group in view.iter("Choices")}
    assert choices["state"] == {"half_eaten", "ripe", "../../up", "on/off", "raw", "unripe"}
    tasks = json.loads((folder / "tasks.json").read_text("utf-8"))
    for task, name in zip(tasks, PHOTOS, strict=True):
        assert unquote(urlsplit(task["data"]["image"]).query) == f"d=photos/{name}"
        for result in task["predictions"][0]["result"]:
            assert set(result["value"]["choices"]) <= choices[result["from_name"]]
    export = tmp_path / "export.json"
    export.write_text(json.dumps(annotated(tasks)), "utf-8")
    assert keys(labels(export)) == expected(photos)

    for task in tasks:  # on another machine only the address is left
        del task["data"]["path"]
    export.write_text(json.dumps(annotated(tasks)), "utf-8")
    assert keys(labels(export, photos)) == keys(labels(export)) == expected(photos)
    short = [{"id": 1, "image": task["data"]["image"], "annotator": 1, "state": "ripe", "object": "pear"}
             for task in tasks]  # fmt: skip
    export.write_text(json.dumps(short), "utf-8")
    assert set(labels(export).values()) == {("ripe", "pear")}


def test_an_address_prefix_names_photos_on_a_server(answers: Answers, tmp_path: Path) -> None:
    folder = convert(answers, "label-studio", tmp_path / "out", url_prefix="https://example.org/p/")
    tasks = json.loads((folder / "tasks.json").read_text("utf-8"))
    assert tasks[3]["data"]["image"] == "https://example.org/p/two%20words%20%26%20100%25%23%3F.jpg"


def test_an_export_says_what_it_lacks(tmp_path: Path) -> None:
    def result(role: str, *names: str) -> dict[str, Any]:
        return {"type": "choices", "from_name": role, "value": {"choices": list(names)}}

    def task(*results: dict[str, Any], cancelled: bool = False) -> dict[str, Any]:
        return {"data": {"image": "/data/upload/3/0a1b2c3d-a.jpg"},
                "annotations": [{"result": list(results), "was_cancelled": cancelled}]}  # fmt: skip

    good = (result("State", "ripe"), result("object", "pear"))
    export = tmp_path / "export.json"
    (tmp_path / "a.jpg").touch()
    tasks = [
        task(*good),
        task(*good, cancelled=True),
        task(good[0]),
        task(result("state", "a", "b"), good[1]),
    ]
    export.write_text(json.dumps(tasks), "utf-8")
    found = read_export(export)
    assert [(photo.file, photo.pair) for photo in found.photos] == [(tmp_path / "a.jpg", ("ripe", "pear"))]
    assert len(found.notes) == 3
    for text, says in (
        ("{", "not readable as JSON"),
        ("{}", "not a list of tasks"),
        ("[]", "holds no labelled photo"),
        (json.dumps([task(good[0])]), "without a state and an object: 1"),
        (
            json.dumps([{"data": {}, "annotations": task(*good)["annotations"]}]),
            "task 1: its data has no 'image'",
        ),
    ):
        export.write_text(text, "utf-8")
        with pytest.raises(DatasetError, match=says):
            read_export(export)


@pytest.mark.parametrize("copy", [False, True])
def test_a_tree_of_links_or_copies_reads_back(
    answers: Answers, photos: Path, tmp_path: Path, copy: bool
) -> None:
    before = set(tmp_path.rglob("*"))
    folder = convert(answers, "image-folder", tmp_path / "out", copy=copy)
    made = set(tmp_path.rglob("*")) - before
    assert all(path.resolve().is_relative_to(photos) or path.is_relative_to(folder) for path in made)
    files = [path for path in made if path.is_file()]
    assert {path.is_symlink() for path in files} == {not copy}
    # Separators and dots that would lead elsewhere are underscores, which name_key takes for spaces.
    found = sorted(
        tuple(map(name_key, pair)) for pair in (photo.pair for photo in read_photos(folder).photos)
    )
    safe = {"../../up": "up", "../../../etc": "etc", "on/off": "on off", ".hidden": "hidden", "con": "con"}
    assert found == sorted(tuple(name_key(safe.get(name, name)) for name in pair) for pair in PHOTOS.values())
    contents = {path.read_bytes() for path in files}
    assert contents == {(photos / name).read_bytes() for name in PHOTOS}


def test_a_system_without_links_gets_copies(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    folder = convert(answers, "image-folder", tmp_path / "out")
    assert not any(path.is_symlink() for path in folder.rglob("*"))


def test_a_photo_that_is_gone_is_counted(answers: Answers, photos: Path, tmp_path: Path) -> None:
    (photos / "a.jpg").unlink()
    made = convert_answers(answers, WRITERS["image-folder"], tmp_path / "out", ConvertOptions())
    assert made.images == len(PHOTOS) - 1
    assert answers.left_out["whose photo is gone"] == 1


def test_a_table_reads_back(answers: Answers, photos: Path, tmp_path: Path) -> None:
    assert keys(labels(convert(answers, "csv", tmp_path / "out.csv"))) == expected(photos)


def test_fiftyone_gets_state_and_object_as_fields_of_their_own(answers: Answers, tmp_path: Path) -> None:
    folder = convert(answers, "fiftyone", tmp_path / "out")
    assert "version" not in json.loads((folder / "metadata.json").read_text("utf-8"))
    samples = json.loads((folder / "samples.json").read_text("utf-8"))["samples"]
    for sample, (state, obj) in zip(samples, PHOTOS.values(), strict=True):
        assert Path(sample["filepath"]).is_file()
        assert (sample["state"]["label"], sample["state"]["confidence"]) == (state, 0.6)
        assert (sample["object"]["label"], sample["object"]["confidence"]) == (obj, 0.7)
        assert [one["label"] for one in sample["pairs"]["classifications"]] == [
            f"{state} {obj}",
            f"raw {obj}",
        ]


def test_cleanlab_gets_labels_and_whole_distributions(answers: Answers, photos: Path, tmp_path: Path) -> None:
    given = {photos / name: ("Half eaten", "plum") for name in PHOTOS}
    file = convert(answers, "cleanlab", tmp_path / "out.npz", labels=given)
    with np.load(file) as data:
        assert data["paths"].tolist() == list(PHOTOS)
        for role, place in (("state", 0), ("object", 1)):
            names = data[f"{role}_names"].tolist()
            probabilities = data[f"{role}_pred_probs"]
            assert probabilities.shape == (len(PHOTOS), len(names))
            np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
            assert [names[i] for i in probabilities.argmax(1)] == [pair[place] for pair in PHOTOS.values()]
            assert {name_key(names[i]) for i in data[f"{role}_labels"]} == {("half eaten", "plum")[place]}


def test_two_predicted_names_are_two_however_they_are_spelled(photos: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    row = predicted("a.jpg", ("t-shirt", "pear"))
    row["states"] = ranked(["t-shirt", "T shirt"], 0.6)
    rows.write_text(json.dumps(row) + "\n")
    answers = Answers(rows, NotedPlaces([str(photos)]))
    options = ConvertOptions(labels={photos / "a.jpg": ("T_shirt", "Pear")}, states=("t shirt", "new"))
    convert_answers(answers, WRITERS["cleanlab"], tmp_path / "out.npz", options)
    with np.load(tmp_path / "out.npz") as data:
        assert data["state_names"].tolist() == ["T shirt", "new", "raw", "t-shirt"]
        assert data["state_labels"].tolist() == [0]
        np.testing.assert_allclose(data["state_pred_probs"], [[0.3, 0.05, 0.05, 0.6]], rtol=1e-6)
        assert data["object_labels"].tolist() == [data["object_names"].tolist().index("pear")]
    convert_answers(answers, WRITERS["label-studio"], tmp_path / "out", options)
    view = (tmp_path / "out" / "labelling.xml").read_text("utf-8")
    states = view[view.index('name="state"') : view.index('value="Object"')]
    assert re.findall(r'Choice value="(.*?)"', states) == ["T shirt", "new", "raw", "t-shirt"]


def test_label_studio_serves_the_folder_that_all_photos_of_a_list_lie_in(
    photos: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    names = [str(photos / "a.jpg"), str(photos / "sub" / "a.jpg")]
    rows.write_text("".join(json.dumps(predicted(name, ("ripe", "pear"))) + "\n" for name in names))
    made = convert_answers(
        Answers(rows, NotedPlaces()), WRITERS["label-studio"], tmp_path / "out", ConvertOptions()
    )
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text("utf-8"))
    assert f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={photos.parent}," in made.notes[1]
    assert [task["data"]["image"] for task in tasks] == [
        "/data/local-files/?d=photos/a.jpg", "/data/local-files/?d=photos/sub/a.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize("given", [{}, {0: 0.5, 2: 0.3}, {0: 0.6, 1: 0.4, 2: 0.2}, {0: 0.0, 1: 0.0, 2: 0.0}])
def test_what_the_best_names_leave_is_spread_over_the_others(given: dict[int, float]) -> None:
    row = fill_probabilities(given, 3)
    assert row.sum() == pytest.approx(1)
    others = [row[i] for i in range(3) if i not in given]
    assert len(set(others)) <= 1
    if sum(given.values()) <= 1 and len(given) < 3:
        assert [row[i] for i in given] == pytest.approx(list(given.values()))


@pytest.mark.parametrize("to", WRITERS)
def test_nothing_is_left_of_a_conversion_that_fails(answers: Answers, tmp_path: Path, to: str) -> None:
    target = tmp_path / f"out{WRITERS[to].suffix}"
    answers.min_probability = 0.9
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DatasetError, match=r"no prediction that can be converted \(.*7 below --min-prob"):
        convert_answers(answers, WRITERS[to], target, ConvertOptions())
    assert sorted(tmp_path.iterdir()) == before


def test_a_target_that_exists_or_lies_among_the_photos_is_refused(
    answers: Answers, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for to, target, says in (
        ("image-folder", tmp_path / "full", "exists already"),
        ("csv", tmp_path / "rows.jsonl", "does not end in .csv"),
        ("fiftyone", photos / "new", "lies in the photo folder"),
    ):
        with pytest.raises(UsageError, match=says):
            check_target(WRITERS[to], target, answers)


@pytest.mark.parametrize(
    "text", ["{", '{"path": 1}\n', "[]\n", '{"path": "a", "status": "ok", "predictions": [1]}\n']
)
def test_damaged_predictions_are_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises(DatasetError, match="are damaged"):
        list(Answers(file, NotedPlaces()))
    with pytest.raises(DatasetError, match="There is no file"):
        list(Answers(tmp_path / "none.jsonl", NotedPlaces()))


def test_names_are_found_where_the_run_says_they_lie(rows: Path, photos: Path, tmp_path: Path) -> None:
    assert noted_places(rows).texts == [str(photos)]
    assert noted_places(tmp_path / "none.jsonl").texts == []
    for places, name, file in (
        (["/p"], "a/b.jpg", "/p/a/b.jpg"),
        (["x = /p", "../y/ = /q"], "../y/b.jpg", "/q/b.jpg"),
        (["x = /p", "../y/ = /q"], "x/b.jpg", "/p/b.jpg"),
        (["x = /p"], "xx/b.jpg", "xx/b.jpg"),
        ([], "/abs/b.jpg", "/abs/b.jpg"),
        (["/p", "/q"], "/q/b.jpg", "/q/b.jpg"),  # of an index of an earlier version
        (["x = /p", "a.jpg = /r/a.jpg"], "a.jpg", "/r/a.jpg"),
        (["/p/a = b"], "c.jpg", "/p/a = b/c.jpg"),
        (["x = /p", "https://h/y.tar = https://h/y.tar"], "https://h/y.tar/b.jpg", "https://h/y.tar/b.jpg"),
        (["s3://bucket/p/"], "b.jpg", "s3://bucket/p/b.jpg"),
        (["/p/list.csv"], "b.jpg", "/p/b.jpg"),
        (["/p/list.csv"], "https://h/b.jpg", "https://h/b.jpg"),
        (["https://h/p/list.csv"], "b.jpg", "https://h/p/b.jpg"),
        ([], "https://h/b.jpg", "https://h/b.jpg"),
        (["s3://bucket/p/list.csv"], "b.jpg", "s3://bucket/p/b.jpg"),
        (["s3://bucket/p/list.csv"], "../q/b.jpg", "s3://bucket/q/b.jpg"),
        (["memory://list.csv"], "./b.jpg", "memory://b.jpg"),
        (["/p"], r"\xff.jpg", os.fsdecode(b"/p/\xff.jpg")),
    ):
        assert NotedPlaces(places).locate(name) == file


def test_a_name_that_is_not_text_is_left_out_where_a_format_is_text(photos: Path, tmp_path: Path) -> None:
    rows = tmp_path / "odd.jsonl"
    found = [predicted(r"\xff.jpg", ("ripe", "pear")), predicted("a.jpg", ("ripe", "pear"))]
    rows.write_text("".join(json.dumps(row) + "\n" for row in found))
    answers = Answers(rows, NotedPlaces([str(photos)]))
    for to in ("csv", "fiftyone"):
        target = tmp_path / f"{to}{WRITERS[to].suffix}"
        assert convert_answers(answers, WRITERS[to], target, ConvertOptions()).images == 1
        assert answers.left_out["with a name that is not text"] == 1
    assert convert_answers(answers, WRITERS["label-studio"], tmp_path / "ls", ConvertOptions()).images == 2


def test_predictions_that_are_not_complete_are_said_to_be_so(
    cli: Cli, rows: Path, photos: Path, tmp_path: Path
) -> None:
    sidecar = tmp_path / "rows.jsonl.run.json"
    for complete, says in ((True, False), (False, True)):
        sidecar.write_text(json.dumps({"complete": complete, "header": {"places": [str(photos)]}}))
        done = cli("convert", rows, "--to", "csv", "-o", tmp_path / f"{complete}.csv")
        assert (done.code, "is not complete" in done.err) == (5, says)


def test_photos_that_lie_elsewhere_are_said_to_be_so(
    cli: Cli, rows: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl.run.json").unlink()
    for images, says in (([], True), (["--images", photos], False)):
        done = cli("convert", rows, "--to", "csv", "-o", tmp_path / f"{says}.csv", *images)
        assert (done.code, "there are no photos such as" in done.err) == (5, says)
