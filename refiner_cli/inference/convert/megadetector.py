"""MegaDetector's JSON, with the states and objects of every detection in it.

Compositions are its own ``classifications``; ``states`` and ``objects`` stand beside them, as in rows.
https://github.com/agentmorris/MegaDetector/tree/main/megadetector/api/batch_processing
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refiner_cli.data.image_file import UnreadableError, open_image
from refiner_cli.errors import DatasetError
from refiner_cli.inference.convert.answers import Answer, AnswerRow, Answers, locate_noted
from refiner_cli.inference.convert.writer import AnswerWriter, Converted, ConvertOptions
from refiner_cli.inference.scan import row_name

FORMAT_VERSION = "1.4"


class MegaDetectorWriter(AnswerWriter):
    """The file that the boxes came from, completed; without it, one made of the rows."""

    suffix = ".json"

    def write(self, target: Path, answers: Answers, options: ConvertOptions) -> Converted:
        found = read_detections(options.boxes) if options.boxes else new_detections()
        images: dict[str, dict[str, Any]] = {row_name(str(one["file"])): one for one in found["images"]}
        names: dict[str, str] = {}
        count = 0
        for answer in answers:
            inputs = (answer.row.model_extra or {}).get("inputs") or {}
            name, number = inputs.get("image"), inputs.get("box")
            if name is None or number is None:
                answers.left_out["row without a box"] += 1
            elif options.boxes:
                count += complete_detection(images.get(name), str(number), answer.row, names, answers)
            else:
                count += add_detection(found, images, name, inputs, answer, names, answers)
        found["classification_categories"] = {number: name for name, number in names.items()}
        target.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
        return Converted(count)


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


def complete_detection(
    image: dict[str, Any] | None, number: str, row: AnswerRow, names: dict[str, str], answers: Answers
) -> int:
    """Write what a row says into its detection; 0 if the file has no such detection."""
    detections = (image or {}).get("detections") or []
    if not number.isdecimal() or int(number) >= len(detections):
        answers.left_out["box that the file does not have"] += 1
        return 0
    detections[int(number)].update(classified(row, names))
    return 1


def add_detection(
    found: dict[str, Any],
    images: dict[str, dict[str, Any]],
    name: str,
    inputs: Mapping[str, Any],
    answer: Answer,
    names: dict[str, str],
    answers: Answers,
) -> int:
    """Add a detection for a row; 0 if nobody knows the size of its image."""
    sides = [float(inputs[side]) for side in ("x", "y", "width", "height")]
    if not inputs.get("fractions"):
        size = upright_size(locate_noted(answers.places, name))
        if size is None:
            answers.left_out["box in pixels whose image cannot be read"] += 1
            return 0
        sides = [side / size[i % 2] for i, side in enumerate(sides)]
    if name not in images:
        images[name] = {"file": name, "detections": []}
        found["images"].append(images[name])
    categories: dict[str, str] = found["detection_categories"]
    category = str(inputs.get("category") or "object")
    number = next((key for key, label in categories.items() if label == category), str(len(categories) + 1))
    categories[number] = category
    images[name]["detections"].append(
        {"category": number, "conf": float(inputs.get("confidence", 1.0)),
         "bbox": [round(side, 6) for side in sides], **classified(answer.row, names)}
    )  # fmt: skip
    return 1


def classified(row: AnswerRow, names: dict[str, str]) -> dict[str, Any]:
    """What a detection says of states and objects; ``names`` numbers the compositions."""
    best = [
        [names.setdefault(f"{one.state} {one.object}", str(len(names))), round(one.probability, 6)]
        for one in row.predictions
    ]
    lists = {
        key: [{"name": one.name, "probability": round(one.probability, 6)} for one in some]
        for key, some in (("states", row.states), ("objects", row.objects))
    }
    return {"classifications": best, **lists}


def upright_size(file: Path) -> tuple[int, int] | None:
    """Width and height of an upright image; None if it cannot be read."""
    try:
        with file.open("rb") as stream, open_image(stream) as image:
            turned = image.getexif().get(0x0112, 1) in {5, 6, 7, 8}
            width, height = image.size
            return (height, width) if turned else (width, height)
    except (OSError, ValueError, UnreadableError):
        return None
