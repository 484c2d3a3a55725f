"""A folder tree ``state/object/`` of links to the photos, as torchvision's ImageFolder and people read it.

What is not said is the folder ``_unknown``: ``_unknown/apple/``, ``ripe/_unknown/``, or ``_unknown/`` alone.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from refiner_cli.data.create.folders import UNKNOWN_FOLDER
from refiner_cli.data.safe_paths import portable_name
from refiner_cli.inference.convert.answers import Answer, Answers
from refiner_cli.inference.convert.writer import AnswerWriter, Converted, ConvertOptions


class ImageFolderWriter(AnswerWriter):
    """One link per photo; a copy if that is asked for, or where the file system has no links."""

    def write(self, target: Path, answers: Answers, options: ConvertOptions) -> Converted:
        images = copied = 0
        for answer in answers:
            if answer.address or not answer.file.is_file():
                answers.left_out["on another machine" if answer.address else "whose photo is gone"] += 1
                continue
            copied += link_or_copy(answer.file.absolute(), new_path(target, answer), copy=options.copy)
            images += 1
        step = "next: move wrong ones to another folder, then: refiner dataset create {out} --out DIR"
        return Converted(images, (f"{images - copied} photos linked, {copied} copied", step))


def new_path(target: Path, answer: Answer) -> Path:
    """A free path in the folder of the answer's state and object; no name leads out of it."""
    said = answer.said
    folder = target / folder_name(said.state)
    if said.text:
        folder /= folder_name(said.object)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [part for part in Path(answer.row.image).parts if part not in {"/", "..", "."}]
    name = "_".join(parts)
    if answer.row.box is not None:  # before the ending, by which tools know an image
        start, point, ending = name.rpartition(".")
        name = f"{start}#{answer.row.box}{point}{ending}" if point else f"{name}#{answer.row.box}"
    name = portable_name(name, hidden=False)
    stem, dot, suffix = name.rpartition(".")
    number, file = 1, folder / name
    while os.path.lexists(file):
        number += 1
        file = folder / (f"{stem}-{number}{dot}{suffix}" if dot else f"{name}-{number}")
    return file


def folder_name(name: str | None) -> str:
    """A state or object as the name of a folder that scans do not take for a hidden one."""
    if name is None:
        return UNKNOWN_FOLDER
    return portable_name(name, hidden=False)


def link_or_copy(file: Path, target: Path, *, copy: bool) -> bool:
    """Link a photo, or copy it; returns whether it was copied."""
    if not copy:
        try:
            target.symlink_to(file)
        except (OSError, NotImplementedError):  # a file system or a user without links
            pass
        else:
            return False
    shutil.copyfile(file, target)
    return True
