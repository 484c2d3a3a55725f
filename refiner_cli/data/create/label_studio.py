"""Photos labelled in Label Studio: its JSON or JSON-MIN export, with choices named state and object.

https://labelstud.io/guide/export: a task of JSON has ``data`` and ``annotations``; one of JSON-MIN holds the
values of its data and of the last annotation side by side.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from refiner_cli.data.create.photos import Photo, PhotoCollection, labelled_pair
from refiner_cli.data.labels import Pair, name_key
from refiner_cli.data.lists import read_text
from refiner_cli.errors import DatasetError

_ROLES = ("state", "object")
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file
_HINT = "Export the project as JSON; its labelling interface needs Choices named state and object."

Task = dict[str, Any]


def read_export(source: Path, images: Path | None = None) -> PhotoCollection:
    """Read an export; tasks without an annotation, or without one state and one object, are passed over.

    Args:
        images: the folder that the photos lie in; None: that of the export.

    Raises:
        DatasetError: it cannot be read, or no task has a state and an object.
    """
    try:
        tasks = json.loads(read_text(source, "export"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{source} is not readable as JSON ({error}).") from None
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise DatasetError(f"{source} is not a Label Studio export: it is not a list of tasks.", hint=_HINT)
    photos: list[Photo] = []
    passed_over: Counter[str] = Counter()
    for number, task in enumerate(tasks, 1):
        where = f"{source}, task {task.get('id', number)}"
        pairs, why = _pairs(task)
        if not pairs:
            passed_over[why] += 1
            continue
        file = _find_image(where, task.get("data", task), images or source.parent)
        photos += [Photo(file, labelled_pair(*pair, where)) for pair in pairs]
    said = [f"tasks {why}: {count}" for why, count in passed_over.items()]
    if not photos:
        raise DatasetError(f"{source} holds no labelled photo ({'; '.join(said) or 'no tasks'}).", hint=_HINT)
    return PhotoCollection(tuple(photos), notes=tuple(f"{note}, passed over" for note in said))


def _pairs(task: Task) -> tuple[list[Pair], str]:
    """What people said a task shows, each pair once; or nothing, and why."""
    found: dict[Pair, None] = {}
    why = "without an annotation"
    for given in _annotations(task):
        choices = {role: given.get(role, []) for role in _ROLES}
        if all(len(names) == 1 for names in choices.values()):
            found[choices["state"][0], choices["object"][0]] = None
        elif any(len(names) > 1 for names in choices.values()):
            why = "with several states or objects"
        else:
            why = "without a state and an object"
    return list(found), why


def _annotations(task: Task) -> Iterator[dict[str, list[str]]]:
    """The chosen names by role, of every annotation that was not cancelled."""
    if "data" not in task:  # JSON-MIN
        by_role = {name_key(str(key)): _names(value) for key, value in task.items()}
        if any(by_role.get(role) for role in _ROLES):
            yield by_role
        return
    for annotation in task.get("annotations") or []:
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        chosen: dict[str, list[str]] = {}
        for result in annotation.get("result") or []:
            if isinstance(result, dict) and result.get("type") == "choices":
                chosen.setdefault(name_key(str(result.get("from_name"))), []).extend(
                    _names(result.get("value"))
                )
        yield chosen


def _names(value: Any) -> list[str]:
    """Choices as any export writes them: a name, a list of names, or either below ``choices``."""
    if isinstance(value, dict):
        value = value.get("choices")
    values = value if isinstance(value, list) else [value]
    return [name for name in values if isinstance(name, str)]


def _find_image(where: str, data: Any, images: Path) -> Path:
    """The file that a task is about: its ``path`` if that exists, else what its ``image`` means."""
    values = data if isinstance(data, dict) else {}
    path, image = values.get("path"), values.get("image")
    if isinstance(path, str) and "\0" not in path and (images / path).is_file():
        return images / path
    if not isinstance(image, str) or not image:
        raise DatasetError(f"{where}: its data has no 'image'.", hint=_HINT)
    places = [images / name for name in _names_of_image(image)]
    return next((place for place in places if place.is_file()), places[0])


def _names_of_image(image: str) -> Iterator[str]:
    """The relative paths that an address in Label Studio may stand for, the most likely first."""
    address = urlsplit(image)
    served = parse_qs(address.query).get("d")
    path = (served[-1] if served else unquote(address.path)).replace("\0", "").lstrip("/") or "image"
    yield path
    yield path.partition("/")[2] or path  # below the folder that is served
    name = path.rpartition("/")[2]
    if "data/upload/" in path:
        yield _UPLOAD.sub("", name)
        yield name
