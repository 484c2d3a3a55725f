"""The boxes of a detector: which parts of the images are recognised, one row a box.

Read are MegaDetector's JSON (fractions of the upright image), COCO's JSON (pixels), and a table (CSV, TSV,
JSON lines or Parquet) with the columns ``path``, ``x``, ``y``, ``width`` and ``height``: pixels, or fractions
where no number is above 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refiner_cli.data.box import Box
from refiner_cli.errors import DatasetError, UsageError
from refiner_cli.files import reason_of
from refiner_cli.inference.scan import ImageFile, row_name
from refiner_cli.inference.sources.content import Failed
from refiner_cli.inference.sources.source import DAMAGES
from refiner_cli.inference.sources.store import LocalFile
from refiner_cli.inference.sources.table import (
    LIST_SUFFIXES,
    columns_by_name,
    json_value,
    path_column,
    table_rows,
)

MIN_CONFIDENCE = 0.2  # of a detection, as MegaDetector's own tools have it
SIDES = ("x", "y", "width", "height")


@dataclass(frozen=True)
class Detection:
    """A box and what its file says about it."""

    number: str  # unique among the boxes of its image
    box: Box
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Boxes:
    """All boxes of a file, by the name of their image.

    Attributes:
        margin: what is added on every side of a box, as a share of its longer side.
        fingerprint: of the file and of everything that decides about the crops.
    """

    by_image: dict[str, list[Detection]]
    margin: float
    fingerprint: str
    left_out: int = 0  # boxes below the confidence
    used: int = 0  # images that had boxes

    def crops(self, images: Iterable[ImageFile]) -> Iterator[ImageFile]:
        """One image a box, called ``name#box``; an image without boxes gives none.

        What cannot be read stays, as it says why boxes are missing.
        """
        for image in images:
            found = self.by_image.get(image.name) or self.by_image.get(image.file.as_posix())
            if found is None:
                if isinstance(image.content, Failed) or image.name.endswith("/"):
                    yield image
                continue
            self.used += 1
            for one in found:
                own = {"image": image.name, "box": one.number, **position(one.box)}
                yield replace(
                    image,
                    name=f"{image.name}#{one.number}",
                    box=replace(one.box, margin=self.margin),
                    inputs={**image.inputs, **own, **one.about, **own},  # no column takes their places
                )


def cropped_name(crop: str) -> str:
    """The name of the image that a crop was cut from; of what is no crop, its own."""
    return crop.rpartition("#")[0] or crop


def box_of(sides: Iterable[Any], *, fractions: bool = False) -> Box:
    """From x, y, width and height."""
    x, y, width, height = map(float, sides)
    return Box(x, y, width, height, fractions)


def position(box: Box) -> dict[str, float | bool]:
    return {"x": box.x, "y": box.y, "width": box.width, "height": box.height, "fractions": box.fractions}


def read_boxes(file: Path, *, margin: float = 0.0, confidence: float = MIN_CONFIDENCE) -> Boxes:
    """The boxes of a file.

    Args:
        confidence: detections below it are left out; a box without one is kept.

    Raises:
        DatasetError: the file is missing, damaged, or of none of the known kinds.
    """
    try:
        digest = hashlib.sha256(repr((margin, confidence)).encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        if file.suffix.lower() in LIST_SUFFIXES:
            detections = read_box_table(table_rows(LocalFile(file), file.name))
        elif file.suffix.lower() != ".json":
            raise ValueError(f"its name ends in none of {', '.join(('.json', *LIST_SUFFIXES))}")
        else:
            found = json.loads(file.read_bytes())
            if not isinstance(found, dict) or not isinstance(found.get("images"), list):
                raise ValueError("it has no list of images; COCO and MegaDetector files have one")
            read = read_coco if isinstance(found.get("annotations"), list) else read_megadetector
            detections = read(found)
        by_image: dict[str, list[Detection]] = {}
        left_out = 0
        for name, one in detections:
            if float(one.about.get("confidence", 1.0)) < confidence:
                left_out += 1
            else:
                by_image.setdefault(image_key(name), []).append(one)
    except (*DAMAGES, TypeError, AttributeError) as error:
        raise DatasetError(f"The boxes {row_name(str(file))} cannot be read ({reason_of(error)}).") from None
    if not by_image:
        raise UsageError(
            f"There is no box in {row_name(str(file))} with a confidence of {confidence:g} or more."
        )
    for found_boxes in by_image.values():
        number_apart(found_boxes)
    return Boxes(by_image, margin, digest.hexdigest()[:16], left_out)


def image_key(name: str) -> str:
    """What an image is called here that a file of boxes calls ``name``."""
    return row_name(name.removeprefix("./"))


def number_apart(found: list[Detection]) -> None:
    """Let no two boxes of an image have one number."""
    if len({one.number for one in found}) < len(found):
        found[:] = [replace(one, number=str(i)) for i, one in enumerate(found)]


Detections = Iterator[tuple[str, Detection]]


def read_megadetector(content: Mapping[str, Any]) -> Detections:
    """Numbered within their image, as they stand there; ``bbox`` is x, y, width, height in fractions."""
    names = content.get("detection_categories") or {}
    for image in content["images"]:
        for number, one in enumerate(image.get("detections") or []):
            category = one.get("category")
            about = {"category": names.get(str(category), category), "confidence": one["conf"]}
            box = box_of(one["bbox"], fractions=True)
            yield megadetector_name(image), Detection(str(number), box, about)


def megadetector_name(image: Mapping[str, Any]) -> str:
    """The path of an image in MegaDetector's JSON, which may be written as on Windows."""
    return str(image["file"]).replace("\\", "/")


def read_coco(content: Mapping[str, Any]) -> Detections:
    """Numbered as the annotations are; ``bbox`` is x, y, width, height in pixels."""
    files = {image["id"]: str(image["file_name"]) for image in content["images"]}
    names = {one["id"]: one["name"] for one in content.get("categories") or []}
    for one in content["annotations"]:
        about = {"category": names.get(one.get("category_id"), one.get("category_id"))}
        if "score" in one:
            about["confidence"] = one["score"]
        box = box_of(one["bbox"])
        yield files[one["image_id"]], Detection(str(one["id"]), box, about)


def read_box_table(table: Iterable[Mapping[str, Any]]) -> Detections:
    """Numbered by a column ``id`` or ``box``, else within their image; other columns are carried along."""
    rows = list(table)
    if not rows:
        raise ValueError("it is empty")
    by_name, path = columns_by_name(rows[0]), path_column(rows[0])
    if missing := [name for name in SIDES if name not in by_name]:
        raise ValueError(f"it lacks the column {missing[0]!r}")
    number = by_name.get("id") or by_name.get("box")
    sides = [tuple(float(row[by_name[name]]) for name in SIDES) for row in rows]
    fractions = max(max(four) for four in sides) <= 1
    known = {path, number, *(by_name[name] for name in SIDES)}
    seen: dict[str, int] = {}
    for row, (x, y, width, height) in zip(rows, sides, strict=True):
        image = str(row[path])
        count = seen[image] = seen.get(image, -1) + 1
        about = {name: json_value(one) for name, one in row.items() if name not in known}
        name, box = str(row[number]) if number else str(count), Box(x, y, width, height, fractions)
        yield image, Detection(name, box, about)
