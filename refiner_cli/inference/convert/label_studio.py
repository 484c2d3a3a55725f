"""Label Studio: tasks with pre-annotations, and the labelling configuration that they fit.

State and object are two groups of choices. https://labelstud.io/guide/predictions
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from refiner_cli.inference.convert.answers import Answer, Answers, Said
from refiner_cli.inference.convert.writer import (
    AnswerWriter,
    Converted,
    ConvertOptions,
    all_names,
    write_json_array,
)
from refiner_cli.inference.scan import row_path

TASKS, CONFIG = "tasks.json", "labelling.xml"
LOCAL_FILES = "/data/local-files/?d="  # Label Studio's address of a file below its document root
MANY_NAMES = 20  # choices that are still shown side by side


class LabelStudioWriter(AnswerWriter):
    """A folder with ``tasks.json`` and ``labelling.xml``."""

    def write(self, target: Path, answers: Answers, options: ConvertOptions) -> Converted:
        states, objects = all_names(answers, options)
        (target / CONFIG).write_text(labelling_config(states, objects), "utf-8")
        root = Path()
        if options.url_prefix is None:
            files = (answer.file.absolute() for answer in answers if not answer.address)
            root = document_root(answers.places.folders(), files)
        tasks = (task(answer, image_url(answer, root, options.url_prefix)) for answer in answers)
        with (target / TASKS).open("w", encoding="utf-8", newline="\n") as stream:
            images = write_json_array(stream, tasks)
        steps = [
            f"next: paste {CONFIG} as the labelling interface of a Label Studio project, and import {TASKS}"
        ]
        if options.url_prefix is None:
            steps.append(
                "Label Studio finds the photos if it runs with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true "
                f"and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, and they are added as local storage"
            )
        return Converted(images, tuple(steps))


def labelling_config(states: Sequence[str], objects: Sequence[str]) -> str:
    """The labelling interface: the image, one choice of a state and one of an object."""
    view = ET.Element("View")
    ET.SubElement(view, "Image", name="image", value="$image", zoom="true")
    for name, values in (("state", states), ("object", objects)):
        ET.SubElement(view, "Header", value=name.capitalize())
        choices = ET.SubElement(view, "Choices", name=name, toName="image", choice="single")
        choices.set(*(("layout", "select") if len(values) > MANY_NAMES else ("showInline", "true")))
        for value in values:
            ET.SubElement(choices, "Choice", value=value)
    ET.indent(view)
    return ET.tostring(view, encoding="unicode") + "\n"


def document_root(folders: Sequence[Path], files: Iterable[Path]) -> Path:
    """The folder that Label Studio has to serve: the one that the folders of all photos lie in.

    Label Studio takes a folder of photos as local storage only below its document root, not the root itself.

    Args:
        folders: where photos are known to lie.
        files: the photos, absolute; they may lie elsewhere.
    """
    parents = [folder.absolute().parent for folder in folders]
    root = Path(os.path.commonpath(parents)) if parents else None
    for file in files:
        if root is None or not file.is_relative_to(root):
            root = Path(os.path.commonpath([root or file.parent.parent, file.parent.parent]))
    return root or Path.cwd()


def image_url(answer: Answer, root: Path, prefix: str | None) -> str:
    """Where Label Studio gets a photo."""
    if prefix is not None:
        return prefix + quote(os.fsencode(row_path(answer.row.image)))
    if answer.address:
        return answer.address
    return LOCAL_FILES + quote(os.fsencode(answer.file.absolute().relative_to(root).as_posix()))


def task(answer: Answer, url: str) -> dict[str, Any]:
    """A photo with what is said of it as its pre-annotation, if anything is.

    ``path`` is for ``refiner dataset create``, ``verdict`` a column of the Data Manager.
    """
    said, more = answer.said, {"path": answer.text_path, "verdict": answer.row.verdict}
    found = list(results(said))
    prediction = {"model_version": "refiner", "score": min(1.0, said.probability or 0.0), "result": found}
    return {
        "data": {"image": url, **{key: value for key, value in more.items() if value}},
        "predictions": [prediction] if found else [],
    }


def results(said: Said) -> Iterator[dict[str, Any]]:
    for role, name in (("state", said.state), ("object", said.object)):
        if name is not None:
            yield {
                "id": role,
                "from_name": role,
                "to_name": "image",
                "type": "choices",
                "value": {"choices": [name]},
            }
