"""MegaDetector's JSON, with the states and objects of every detection in it.

Compositions are its own ``classifications``, or what the row's ``verdict`` says is sure, as one class;
``states`` and ``objects`` stand beside them, as in rows.
https://github.com/agentmorris/MegaDetector/tree/main/megadetector/api/batch_processing
"""

from __future__ import annotations

import json
import os
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from refiner_cli.data.image_file import UnreadableError, open_image
from refiner_cli.errors import DatasetError
from refiner_cli.inference.convert.answers import Answer, AnswerRow, Answers
from refiner_cli.inference.convert.writer import AnswerWriter, Converted, ConvertOptions
from refiner_cli.inference.scan import row_name
from refiner_cli.inference.sources.boxes import image_key, megadetector_name

FORMAT_VERSION = "1.4"


class MegaDetectorWriter(AnswerWriter):
    """The file that the boxes came from, completed; without it, one made of the rows."""

    suffix = ".json"

    def write(self, target: Path, answers: Answers, options: ConvertOptions) -> Converted:
        made = DetectionFile(read_detections(options.boxes) if options.boxes else new_detections(), answers)
        written = 0
        for answer in answers:
            if answer.row.box is None:
                answers.left_out["without a box"] += 1
            else:
                written += made.complete(answer) if options.boxes else made.add(answer)
        target.write_text(json.dumps(made.to_json(), indent=1, ensure_ascii=False) + "\n", "utf-8")
        return Converted(written)


class DetectionFile:
    """A detector's file while rows are written into it.

    Args:
        content: of MegaDetector's file, or of a new one.
        answers: counts what is left out, and says where the images lie.
    """

    def __init__(self, content: dict[str, Any], answers: Answers) -> None:
        self.content, self.answers = content, answers
        self.images: dict[str, dict[str, Any]] = {
            image_key(megadetector_name(one)): one for one in content["images"]
        }
        # Classes that another classifier gave keep their numbers: its detections may stay.
        self.categories: dict[str, str] = dict(content.get("classification_categories") or {})
        self.numbers = {name: number for number, name in self.categories.items()}
        self.sizes: dict[str, tuple[int, int] | None] = {}  # of the images whose boxes are in pixels

    def to_json(self) -> dict[str, Any]:
        made = {number: name for name, number in self.numbers.items()}
        return self.content | {"classification_categories": self.categories | made}

    @cached_property
    def by_file(self) -> dict[str, dict[str, Any]]:
        """The images by their files, for names that are not those of the rows."""
        return {os.path.realpath(name): one for name, one in self.images.items()}

    def complete(self, answer: Answer) -> bool:
        """Write what a row says into its detection; False if the file has no such detection."""
        row, number = answer.row, str(answer.row.box)
        image = self.images.get(row.image) or self.by_file.get(os.path.realpath(answer.where), {})
        detections = image.get("detections") or []
        if not number.isdecimal() or int(number) >= len(detections):
            self.answers.left_out["with a box that the file does not have"] += 1
            return False
        detections[int(number)].update(classified(row, self.numbers))
        return True

    def add(self, answer: Answer) -> bool:
        """Add a detection for a row; False if nobody knows the size of its image."""
        about, name = answer.row.about, answer.row.image
        sides = [float(about[side]) for side in ("x", "y", "width", "height")]
        if not about.get("fractions"):
            if name not in self.sizes:
                self.sizes[name] = None if answer.address else upright_size(answer.file)
            size = self.sizes[name]
            if size is None:
                self.answers.left_out["with a box in pixels and an image that cannot be read"] += 1
                return False
            sides = [side / size[i % 2] for i, side in enumerate(sides)]
        if name not in self.images:
            self.images[name] = {"file": name, "detections": []}
            self.content["images"].append(self.images[name])
        categories: dict[str, str] = self.content["detection_categories"]
        category = str(about.get("category") or "object")
        number = next((key for key, label in categories.items() if label == category), None)
        number = number or str(len(categories) + 1)
        categories[number] = category
        self.images[name]["detections"].append(
            {"category": number, "conf": float(about.get("confidence", 1.0)),
             "bbox": [round(side, 6) for side in sides], **classified(answer.row, self.numbers)}
        )  # fmt: skip
        return True


def read_detections(file: Path) -> dict[str, Any]:
    """MegaDetector's file. Raises DatasetError for any other."""
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
        if "annotations" in found or not all("file" in image for image in found["images"]):
            raise ValueError("it is not MegaDetector's")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(f"The boxes {row_name(str(file))} cannot be read ({error}).") from None
    return found


def new_detections() -> dict[str, Any]:
    info = {"format_version": FORMAT_VERSION, "detector": "boxes of refiner predict", "classifier": "refiner"}
    return {"info": info, "detection_categories": {}, "images": []}


def classified(row: AnswerRow, names: dict[str, str]) -> dict[str, Any]:
    """What a detection says of states and objects; ``names`` numbers the classes."""
    classes = [(f"{one.state} {one.object}", one.probability) for one in row.predictions]
    if row.verdict:
        said = row.said()
        classes = [(said.text, said.probability or 0.0)] if said.text else []
    best = [[number_of(name, names), round(share, 6)] for name, share in classes]
    lists = {
        key: [{"name": one.name, "probability": round(one.probability, 6)} for one in some]
        for key, some in (("states", row.states), ("objects", row.objects))
    }
    verdict = {"verdict": row.verdict} if row.verdict else {}
    return {"classifications": best, **verdict, **lists}


def number_of(name: str, names: dict[str, str]) -> str:
    """The number of a class, a new one if it has none."""
    if name not in names:
        taken = set(names.values())
        names[name] = next(number for number in map(str, count(len(names))) if number not in taken)
    return names[name]


def upright_size(file: Path) -> tuple[int, int] | None:
    """Width and height of an upright image; None if it cannot be read."""
    try:
        with file.open("rb") as stream, open_image(stream) as image:
            turned = image.getexif().get(0x0112, 1) in {5, 6, 7, 8}
            width, height = image.size
            return (height, width) if turned else (width, height)
    except (OSError, ValueError, UnreadableError):
        return None
