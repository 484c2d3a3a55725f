"""The boxes of a detector: one row a box, the right pixels, and the detector's file completed."""

from __future__ import annotations

import csv
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refiner_cli.data.box import Box
from refiner_cli.data.crop import Crop
from refiner_cli.data.decode import read
from refiner_cli.errors import DatasetError, UsageError
from refiner_cli.inference.convert import megadetector as megadetector_writer
from refiner_cli.inference.convert.megadetector import upright_size
from refiner_cli.inference.decoding import decode_batches
from refiner_cli.inference.formats import read_rows
from refiner_cli.inference.sources.boxes import read_boxes
from refiner_cli.inference.sources.places import Places, find_places
from tests.conftest import Cli
from tests.inference.sources.packing import write_tar

RED, BLUE = (250, 0, 0), (0, 0, 250)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Grey photos with a red box at (120, 40) of 60 x 80 pixels, and a blue one; the second is turned."""
    folder = tmp_path / "photos"
    folder.mkdir()
    image = Image.new("RGB", (400, 300), (128, 128, 128))
    image.paste(RED, (120, 40, 180, 120))
    image.paste(BLUE, (300, 200, 400, 300))
    image.save(folder / "a.jpg", quality=95)
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned by a quarter, clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif, quality=95)
    (folder / "bad.jpg").write_bytes(b"no image")
    image.save(folder / "empty.jpg")
    return folder


PIXELS = {"red": [120, 40, 60, 80], "blue": [300, 200, 100, 100]}
FRACTIONS = {name: [x / 400, y / 300, w / 400, h / 300] for name, (x, y, w, h) in PIXELS.items()}


def megadetector(folder: Path) -> Path:
    images = [
        {"file": name, "detections": [
            {"category": "1", "conf": 0.9, "bbox": FRACTIONS["red"]},
            {"category": "1", "conf": 0.1, "bbox": [0, 0, 1, 1]},
            {"category": "2", "conf": 0.8, "bbox": FRACTIONS["blue"]},
        ]} for name in ("a.jpg", "turned.jpg", "bad.jpg")
    ]  # fmt: skip
    images += [{"file": "empty.jpg", "detections": []}, {"file": "broken.jpg"}]
    content = {
        "images": images,
        "detection_categories": {"1": "animal", "2": "person"},
        "info": {"detector": "md_v5a"},
    }
    file = folder / "detections.json"
    file.write_text(json.dumps(content))
    return file


def coco(folder: Path) -> Path:
    names = ["a.jpg", "turned.jpg", "bad.jpg"]
    boxes = [(i, box) for i in range(3) for box in ("red", "blue")]
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": 70 + n, "image_id": i, "bbox": PIXELS[box], "category_id": 5}
            for n, (i, box) in enumerate(boxes)
        ],
        "categories": [{"id": 5, "name": "thing"}],
    }
    file = folder / "coco.json"
    file.write_text(json.dumps(content))
    return file


def table(folder: Path, boxes: dict[str, Any] = PIXELS, suffix: str = ".csv") -> Path:
    """A table with a value of two lines in every row."""
    rows = [
        {"path": name, **dict(zip(("x", "y", "width", "height"), box, strict=True)), "site": "far\nnorth"}
        for name in ("a.jpg", "turned.jpg", "bad.jpg")
        for box in boxes.values()
    ]
    file = folder / f"boxes{suffix}"
    if suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return file


def colours(places: Places) -> dict[str, str]:
    """What each crop shows, or why it shows nothing."""
    found = {}
    for group, results in decode_batches(places.images(), 4, Crop(8, 8), 0):
        for queued, result in zip(group.wanted, results, strict=True):
            mean = "" if isinstance(result, str) else np.asarray(result).mean(axis=(0, 1))
            red, blue = (np.abs(mean - colour).max() < 40 if len(mean) else False for colour in (RED, BLUE))
            found[queued.image.name] = "red" if red else "blue" if blue else str(result)
    return found


@pytest.mark.parametrize("kind", ["megadetector", "coco", "pixels", "fractions", ".tsv", ".jsonl"])
def test_every_box_is_an_image_that_shows_what_is_in_it(photos: Path, tmp_path: Path, kind: str) -> None:
    files = {
        "megadetector": megadetector,
        "coco": coco,
        "pixels": table,
        "fractions": lambda f: table(f, FRACTIONS),
        ".tsv": lambda f: table(f, suffix=".tsv"),
        ".jsonl": lambda f: table(f, suffix=".jsonl"),
    }
    boxes = read_boxes(files[kind](tmp_path))
    numbers = {"megadetector": ["0", "2"] * 3, "coco": [str(n) for n in (70, 71, 74, 75, 72, 73)]}.get(
        kind, ["0", "1"] * 3
    )
    for place in (str(photos), str(write_tar(tmp_path / "x.tar", photos, sorted(photos.iterdir())))):
        places = find_places([place])
        places.boxes = boxes
        found = colours(places)
        names = [f"{name}#" for name in ("a.jpg", "bad.jpg", "turned.jpg") for _ in range(2)]
        order = numbers if kind != "coco" else ["70", "71", "74", "75", "72", "73"]
        assert list(found) == [f"{name}{number}" for name, number in zip(names, order, strict=True)]
        good = [result for name, result in found.items() if "bad" not in name]
        assert good == ["red", "blue", "red", "blue"]
        first = next(places.images())
        assert first.inputs["image"] == "a.jpg"
        assert (first.inputs["x"], first.inputs["fractions"]) == (
            (0.3, True) if kind in {"megadetector", "fractions"} else (120, False)
        )
    if kind not in {"megadetector", "coco"}:
        assert first.inputs["site"] == "far\nnorth"
    if kind == "megadetector":
        assert boxes.left_out == 3
        assert first.inputs["category"] == "animal"


@pytest.mark.parametrize("place", ["-", ".", "x.tar"])
def test_crops_are_found_again(
    photos: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(photos.iterdir())
    monkeypatch.chdir(write_tar(photos / "x.tar", photos, files).parent)
    listed = "".join(f"{file.name}\n" for file in files).encode()
    places = find_places([place], stdin=BytesIO(listed))
    places.boxes = read_boxes(table(tmp_path))
    images = list(places.images())
    names = [f"{name}#{number}" for name in ("turned.jpg", "a.jpg", "lost.jpg") for number in (1, 0)]
    found = list(places.locate(names))
    assert [image.name for image in found] == names
    assert [image.box for image in found[:4]] == [
        next(image.box for image in images if image.name == name) for name in names[:4]
    ]
    shown = [shown for _, group in decode_batches(iter(found), 4, Crop(8, 8), 0) for shown in group]
    assert [isinstance(one, str) for one in shown] == [False] * 4 + [True] * 2


def test_a_margin_enlarges_a_box_up_to_the_edges(photos: Path) -> None:
    box = Box(120, 40, 60, 80)
    assert box.region(400, 300) == (120, 40, 180, 120)
    wide = Box(120, 40, 60, 80, margin=0.5)
    assert wide.region(400, 300) == (80, 0, 220, 160)
    assert read(photos / "a.jpg", box=wide).size == (140, 160)
    assert Box(0.5, 0.5, 0.9, 0.9, fractions=True).region(100, 100) == (50, 50, 100, 100)


@pytest.mark.parametrize(
    "box", [Box(500, 0, 10, 10), Box(0, 0, 0, 10), Box(float("nan"), 0, 5, 5), Box(-9, 0, 9, 9)]
)
def test_a_box_without_pixels_is_an_error_row(photos: Path, box: Box) -> None:
    for file in (photos / "a.jpg", photos / "turned.jpg"):
        with pytest.raises(Exception, match="its box"):
            read(file, 8, box=box)


def test_a_small_box_is_cut_from_enough_pixels(tmp_path: Path) -> None:
    """A JPEG is decoded small for a small crop, but not so small that a box loses its detail."""
    image = Image.new("RGB", (1600, 1200), (128, 128, 128))
    for i in range(0, 80, 10):
        image.paste((255, 255, 255), (800 + i, 600, 805 + i, 680))
    file = tmp_path / "a.jpg"
    image.save(file, quality=95)
    box = Box(800, 600, 80, 80)
    small = np.asarray(read(file, 32, box=box).convert("L"), float)
    assert min(small.shape) >= 64
    assert small.std() > 30
    assert np.asarray(read(file, 32).convert("L")).shape[0] < 300


@pytest.mark.parametrize(
    ("name", "text"),
    [("x.json", "{"), ("x.json", "[]"), ("x.json", '{"images": [{"detections": [{"bbox": [1]}]}]}'),
     ("x.csv", ""), ("x.txt", "path,x\n"), ("x.csv", "path,x\na,1\n"),
     ("x.csv", "path,x,y,width,height\na.jpg,1,2,three,4\n")],
)  # fmt: skip
def test_damaged_boxes_are_one_sentence(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_boxes(tmp_path / name)


def test_no_box_at_all_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no box"):
        read_boxes(megadetector(tmp_path), confidence=0.95)


def test_rows_of_boxes_complete_the_detectors_file(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    file, out = megadetector(tmp_path), tmp_path / "rows.jsonl"
    done = cli("predict", small_export, photos, "--boxes", file, "-o", out, "--top-k", "2")
    assert done.code == 5
    assert "3 boxes with a confidence below 0.2 are left out" in done.err
    rows = {row["path"]: row for row in read_rows(out)}
    assert rows["a.jpg#0"]["inputs"]["category"] == "animal"
    assert rows["bad.jpg#2"]["status"] == "error"
    assert cli("-q", "predict", small_export, photos, "-o", out).code == 2  # not the same boxes
    parts = (
        "-q",
        "predict",
        small_export,
        photos,
        "--boxes",
        file,
        "-o",
        f"{tmp_path}/parts/",
        "--format",
        "parquet",
    )
    assert cli(*parts, "--top-k", "2", "--part-size", "4").code == 5
    assert cli("-q", "merge", tmp_path / "parts", "-o", tmp_path / "merged.csv", "--wide").code == 0
    assert [row["path"] for row in read_rows(tmp_path / "merged.csv")] == list(rows)
    for source in (out, tmp_path / "merged.csv"):
        made = tmp_path / f"{source.stem}.json"
        to = ("convert", source, "--to", "megadetector", "-o", made, "--images", photos)
        assert cli("-q", *to, "--boxes", file).code == 5  # the bad image
        before, after = json.loads(file.read_text()), json.loads(made.read_text())
        first = after["images"][0]["detections"][0]
        name, probability = first["classifications"][0]
        best = rows["a.jpg#0"]["predictions"][0]
        assert after["classification_categories"][name] == f"{best['state']} {best['object']}"
        assert probability == pytest.approx(best["probability"], abs=1e-5)
        assert first["states"][0]["name"] == rows["a.jpg#0"]["states"][0]["name"]
        for image in after["images"]:
            for one in image.get("detections", []):
                for key in ("classifications", "states", "objects"):
                    one.pop(key, None)
        after.pop("classification_categories")
        assert after == before


def test_boxes_in_pixels_become_megadetectors_fractions(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, made = tmp_path / "rows.jsonl", tmp_path / "made.json"
    assert cli("-q", "predict", small_export, photos, "--boxes", coco(tmp_path), "-o", out).code == 5
    opened: list[Path] = []

    def counted_size(file: Path) -> tuple[int, int] | None:
        opened.append(file)
        return upright_size(file)

    monkeypatch.setattr(megadetector_writer, "upright_size", counted_size)
    assert cli("-q", "convert", out, "--to", "megadetector", "-o", made).code == 5
    assert sorted(file.name for file in opened) == ["a.jpg", "turned.jpg"]  # each once, for two boxes
    images = json.loads(made.read_text())["images"]
    assert {image["file"] for image in images} == {"a.jpg", "turned.jpg"}
    for image in images:
        assert image["detections"][0]["bbox"] == pytest.approx(FRACTIONS["red"], abs=1e-5)
