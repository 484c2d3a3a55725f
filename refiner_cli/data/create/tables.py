"""Photos in a table: CSV, TSV or JSON lines with the columns path, state, object and, optionally, split."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refiner_cli.data.benchmark import SPLITS
from refiner_cli.data.create.photos import Photo, PhotoCollection, labelled_pair
from refiner_cli.data.delimiter import delimiter_of
from refiner_cli.data.labels import name_key
from refiner_cli.data.lists import read_text
from refiner_cli.errors import DatasetError

TABLE_COLUMNS = ("path", "state", "object", "split")
TABLE_SUFFIXES = (".csv", ".jsonl", ".ndjson", ".tsv")
_REQUIRED = TABLE_COLUMNS[:3]
_OPEN_VERDICTS = {"state", "object", "unknown"}

Record = tuple[int, dict[str, Any]]  # line number, values by column


def read_table(source: Path, images: Path | None = None) -> PhotoCollection:
    """Read a table of photos; other columns are ignored.

    A row without a state or an object is passed over if it has a verdict that says so (``refiner convert``).
    Comma, semicolon and tab are told apart by the header, whose case does not matter.

    Args:
        images: the folder that paths are relative to; None: that of the table.

    Raises:
        DatasetError: it cannot be read or understood; names the line.
    """
    text = read_text(source, "table")
    is_csv = source.suffix.lower() in {".csv", ".tsv"}
    records = _csv_records(source, text) if is_csv else _json_records(source, text)
    photos, ignored, undecided = [], dict[str, None](), 0
    for number, record in records:
        if _is_undecided(record):
            undecided += 1
        else:
            photos.append(_photo(source, number, record, images or source.parent))
        ignored.update(dict.fromkeys(column for column in record if column not in TABLE_COLUMNS))
    if not photos:
        raise DatasetError(f"{source} lists no images{' with a state and an object' if undecided else ''}.")
    if len({photo.split is None for photo in photos}) > 1:
        lacking = next(photo.file for photo in photos if photo.split is None)
        raise DatasetError(
            f"{source} states a split for some images and not for others, for example {lacking}."
        )
    notes = [f"columns ignored: {', '.join(ignored)}"] if ignored else []
    if undecided:
        notes.append(f"rows without a state and an object, by their verdict: {undecided}, passed over")
    return PhotoCollection(tuple(photos), notes=tuple(notes))


def _is_undecided(record: dict[str, Any]) -> bool:
    """Whether a model's verdict left the state or object of a row open, and nobody has filled it in."""
    is_open = str(record.get("verdict") or "").strip() in _OPEN_VERDICTS
    return is_open and any(record.get(role) is None or record[role] == "" for role in ("state", "object"))


def _photo(source: Path, number: int, record: dict[str, Any], images: Path) -> Photo:
    where = f"{source}, line {number}"
    values = {column: _text(where, column, record.get(column)) for column in TABLE_COLUMNS}
    if empty := [column for column in _REQUIRED if not values[column]]:
        near = difflib.get_close_matches(empty[0], [str(column) for column in record], 1)
        hint = f"Is it the column {near[0]!r}?" if near and empty[0] not in record else ""
        raise DatasetError(f"{where}: the {empty[0]} is missing.", hint=hint)
    split = next((split for split in SPLITS if split == values["split"].lower()), None)
    if values["split"] and split is None:
        raise DatasetError(
            f"{where}: {values['split']!r} is not a split.", hint=f"The splits are {', '.join(SPLITS)}."
        )
    pair = labelled_pair(values["state"], values["object"], where)
    return Photo(images / values["path"], pair, split)


def _text(where: str, column: str, value: Any) -> str:
    """What a cell says; of JSON a number, too (0 is a name), but no list."""
    if isinstance(value, list | dict):
        raise DatasetError(f"{where}: the {column} is {json.dumps(value)[:80]}, which is not text.")
    return "" if value is None else str(value).strip()


def _csv_records(source: Path, text: str) -> Iterator[Record]:
    header = text.lstrip("\n").partition("\n")[0]
    delimiter = delimiter_of(header, lambda cell: _column(cell) in TABLE_COLUMNS)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    columns: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = _columns(source, cells)
            elif len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
                raise DatasetError(
                    f"{source}, line {reader.line_num}: {len(cells)} values for {len(columns)} columns.",
                    hint=f'Put a value that holds {delimiter!r} in double quotes: "a{delimiter}b".',
                )
            else:
                yield reader.line_num, dict(zip(columns, cells, strict=False))
    except csv.Error as error:
        raise DatasetError(f"{source}, line {reader.line_num}: not readable as CSV ({error}).") from None


def _columns(source: Path, cells: list[str]) -> list[str]:
    columns = [_column(cell) for cell in cells]
    if lacking := [column for column in _REQUIRED if column not in columns]:
        near = difflib.get_close_matches(lacking[0], columns, 1)
        hint = f"Did you mean it by {near[0]!r}?" if near else f"The columns are {', '.join(TABLE_COLUMNS)}."
        raise DatasetError(f"{source}: the header has no column {lacking[0]!r}.", hint=hint)
    twice = [column for column in TABLE_COLUMNS if columns.count(column) > 1]
    if twice:
        raise DatasetError(f"{source}: the header has the column {twice[0]!r} twice.")
    return columns


def _column(cell: object) -> str:
    """A known column in its own spelling, any other as it stands."""
    key = name_key(str(cell))
    return key if key in TABLE_COLUMNS else str(cell).strip()


def _json_records(source: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{source}, line {number}: not readable as JSON ({error}).") from None
        if not isinstance(value, dict):
            raise DatasetError(f"{source}, line {number}: not a JSON object.")
        yield number, {_column(key): value[key] for key in value}
