"""A listing that is made once and stored in slices: which images there are, for any number of processes.

Each slice is a file of JSON lines with the images of one unit of work. Writing and reading hold one slice in
memory, however many names there are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from refiner_cli.data.box import Box
from refiner_cli.errors import RefinerError
from refiner_cli.files import atomic_file
from refiner_cli.inference.scan import FileVersion, ImageFile
from refiner_cli.inference.sources.bucket import BucketContent
from refiner_cli.inference.sources.content import Content, Failed
from refiner_cli.inference.sources.web import WebContent, is_web


def write_slices(images: Iterable[ImageFile], folder: Path, first: int, size: int) -> int:
    """Write the listing in slices of ``size`` images, numbered from ``first``; return their number."""
    stream, number = iter(images), first
    while group := list(islice(stream, size)):
        with atomic_file(slice_file(folder, number)) as part, part.open("w", encoding="ascii") as text:
            text.writelines(json.dumps(to_entry(image)) + "\n" for image in group)
        number += 1
    return number - first


def read_slice(folder: Path, number: int) -> Iterator[ImageFile]:
    """The images of one slice. Raises RefinerError if it is missing or damaged."""
    file = slice_file(folder, number)
    try:
        with file.open(encoding="ascii") as text:
            for line in text:
                yield from_entry(json.loads(line))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RefinerError(
            f"The listing {file} is damaged ({error}).", hint="Start over with --overwrite."
        ) from None


def slice_file(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.jsonl"


def to_entry(image: ImageFile) -> dict[str, Any]:
    """An image as a line of a listing holds it; what goes without saying is left out."""
    content = image.content
    entry: dict[str, Any] = {"name": image.name, "file": str(image.file)}
    if image.shown:
        entry["shown"] = image.shown
    if isinstance(content, WebContent | BucketContent):
        entry["url"] = content.url
    elif isinstance(content, Failed):
        entry["failed"] = content.reason
    elif content is not None:
        raise TypeError(f"{image.name} is no image of a listing")
    if image.version is not None:
        entry |= {"size": image.version.size, "modified": image.version.modified}
    if image.box is not None:
        entry["box"] = asdict(image.box)
    if image.inputs:
        entry["inputs"] = dict(image.inputs)
    return entry


def from_entry(entry: dict[str, Any]) -> ImageFile:
    """The inverse of :func:`to_entry`."""
    content: Content | None = None
    if url := entry.get("url"):
        content = WebContent(url) if is_web(url) else BucketContent(url, entry.get("size"))
    elif "failed" in entry:
        content = Failed(entry["failed"])
    version = FileVersion(entry["size"], entry["modified"]) if "size" in entry else None
    box = Box(**entry["box"]) if "box" in entry else None
    return ImageFile(
        Path(entry["file"]),
        entry["name"],
        content,
        version,
        box,
        entry.get("inputs", {}),
        entry.get("shown", ""),
    )
