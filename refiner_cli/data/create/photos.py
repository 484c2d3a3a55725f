"""A user's own photos: folders named after pairs, or a table of paths and labels.

Names in the published folder format hold no white space. So white space and underscores inside a
name become dots, as in UT-Zappos; prompts read a dot as a space again.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refiner_cli.data.benchmark import SPLITS, Split, read_pairs
from refiner_cli.data.image_file import IMAGE_SUFFIXES
from refiner_cli.data.labels import Pair
from refiner_cli.errors import DatasetError

COLUMNS = ("path", "state", "object", "split")
_TABLES = {".csv", ".tsv", ".jsonl", ".ndjson"}


@dataclass(frozen=True)
class Photo:
    """One labelled image of the user's; ``split`` only if the user chose it."""

    file: Path
    pair: Pair
    split: Split | None = None


def read_photos(source: Path) -> list[Photo]:
    """Read a folder of ``state_object/`` or ``state/object/`` folders, a CSV, TSV or JSON-lines file.

    Raises:
        DatasetError: nothing is there, or it cannot be understood; names the folder or line.
    """
    if source.is_dir():
        photos = list(_from_folders(source))
        if not photos:
            raise DatasetError(
                f"{source} holds no images.",
                hint="It must hold folders named state_object, or state folders with object folders in them.",
            )
        return photos
    if not source.is_file():
        raise DatasetError(f"There is no file or folder {source}.")
    if source.suffix.lower() not in _TABLES:
        raise DatasetError(f"{source} is neither a folder nor one of {', '.join(sorted(_TABLES))}.")
    photos = list(_from_table(source))
    if not photos:
        raise DatasetError(f"{source} lists no images.")
    if len({photo.split is None for photo in photos}) > 1:
        lacking = next(photo.file for photo in photos if photo.split is None)
        raise DatasetError(f"{source} states a split for some images and not for others, {lacking} for one.")
    return photos


def read_unseen(file: Path) -> tuple[Pair, ...]:
    """Pairs from a list of ``state object`` lines, as pair lists spell them. Raises DatasetError."""
    return tuple((clean_name(state), clean_name(obj)) for state, obj in read_pairs(file))


def clean_name(name: str) -> str:
    """A state or object as it stands in pair lists."""
    return re.sub(r"[\s_.]+", ".", name).strip(".")


# --- folders -------------------------------------------------------------------------------------


def _from_folders(source: Path) -> Iterator[Photo]:
    tops = _folders(source)
    deep = [top for top in tops if not any(_images(top)) and _folders(top)]
    flat = [top for top in tops if top not in deep and any(_below(top))]
    if deep and flat:
        raise DatasetError(
            f"{source} mixes state/object folders ({deep[0].name}) with state_object folders "
            f"({flat[0].name}).",
            hint="Use one way for all, or a CSV file.",
        )
    pairs = _read_names([top.name for top in flat])
    labelled = [(top, pairs[top.name]) for top in flat]
    labelled += [
        (inner, (clean_name(top.name), clean_name(inner.name))) for top in deep for inner in _folders(top)
    ]
    for folder, pair in labelled:
        for file in _below(folder):
            yield Photo(file, pair)


def _read_names(names: Iterable[str]) -> dict[str, Pair]:
    """Pairs from ``state_object`` names.

    With more than two words the cut is where a name is known from the other folders: beside
    ``red_apple``, ``red_bell_pepper`` is a red one. Raises DatasetError where that does not decide.
    """
    words = {name: re.split(r"[\s_]+", name.strip("_ ")) for name in names}
    if single := [name for name, parts in words.items() if len(parts) < 2]:
        raise DatasetError(
            f"The folder name {single[0]!r} is not of the form state_object.",
            hint="Rename it, or use state/object folders, or a CSV file.",
        )
    pairs = {name: (parts[0], parts[1]) for name, parts in words.items() if len(parts) == 2}
    states, objects = {state for state, _ in pairs.values()}, {obj for _, obj in pairs.values()}
    for name, parts in words.items():
        if name in pairs:
            continue
        cuts = [(".".join(parts[:i]), ".".join(parts[i:])) for i in range(1, len(parts))]
        known = [(state in states) + (obj in objects) for state, obj in cuts]
        best = [cut for cut, score in zip(cuts, known, strict=True) if score == max(known)]
        if len(best) != 1:
            options = " or ".join(f"{state!r} + {obj!r}" for state, obj in best)
            raise DatasetError(
                f"The folder name {name!r} can be read as {options}.",
                hint="Use state/object folders, or a CSV file, or a dot inside a name: red_bell.pepper.",
            )
        pairs[name] = best[0]
    return {name: (clean_name(state), clean_name(obj)) for name, (state, obj) in pairs.items()}


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def _below(folder: Path) -> Iterator[Path]:
    yield from _images(folder)
    for inner in _folders(folder):
        yield from _below(inner)


# --- tables --------------------------------------------------------------------------------------


def _from_table(source: Path) -> Iterator[Photo]:
    for number, row in _rows(source):
        where = f"{source}, line {number}"
        if strange := [key for key in row if key not in COLUMNS]:
            near = difflib.get_close_matches(str(strange[0]), COLUMNS, 1)
            hint = f"Did you mean '{near[0]}'?" if near else f"The columns are {', '.join(COLUMNS)}."
            raise DatasetError(f"{where}: unknown column {strange[0]!r}.", hint=hint)
        values = {key: str(row.get(key) or "").strip() for key in COLUMNS}
        if empty := [key for key in ("path", "state", "object") if not values[key]]:
            raise DatasetError(f"{where}: the {empty[0]} is missing.")
        split = next((split for split in SPLITS if split == values["split"]), None)
        if values["split"] and split is None:
            raise DatasetError(
                f"{where}: {values['split']!r} is no split.", hint=f"Those are {', '.join(SPLITS)}."
            )
        pair = (clean_name(values["state"]), clean_name(values["object"]))
        if not all(pair):
            raise DatasetError(f"{where}: a state and an object need a letter or a digit.")
        yield Photo(source.parent / values["path"], pair, split)


def _rows(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of each row. A byte order mark, as spreadsheets write it, is skipped."""
    try:
        with source.open(encoding="utf-8-sig", newline="") as stream:
            if source.suffix.lower() in {".csv", ".tsv"}:
                reader = csv.DictReader(
                    stream, delimiter="\t" if source.suffix.lower() == ".tsv" else ",", strict=True
                )
                for row in reader:
                    yield reader.line_num, {("" if key is None else key.strip()): row[key] for key in row}
                return
            for number, line in enumerate(stream, 1):
                if line.strip():
                    value = json.loads(line)
                    if not isinstance(value, dict):
                        raise DatasetError(f"{source}, line {number}: not a JSON object.")
                    yield number, value
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise DatasetError(f"{source} cannot be read ({error}).") from None
