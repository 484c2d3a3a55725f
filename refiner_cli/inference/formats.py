"""The row of an image, and the formats it is written in: JSON lines, CSV and Parquet.

CSV and Parquet flatten the same names: ``predictions.1.state``, ``states.2.probability`` and so on. In a CSV
file a text that a spreadsheet would take for a formula starts with an apostrophe, and control characters
are escaped; reading undoes both.
"""

from __future__ import annotations

import csv
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TextIO

from refiner_cli.errors import UsageError
from refiner_cli.inference.recogniser import Prediction
from refiner_cli.inference.scan import UNKNOWN_VERSION, FileVersion, row_name
from refiner_cli.printable import ACTIVE, escape_as_json, json_text

RANKED_FIELDS = {
    "predictions": ("state", "object", "score", "probability", "seen"),
    "states": ("name", "probability"),
    "objects": ("name", "probability"),
}
IMAGE_FIELDS = ("path", "status", "error", "size", "modified")
NUMBERS = {"score", "probability"}
ROW_GROUP = 8192  # rows of a Parquet file that are in memory at once
_NOT_IN_CSV = re.compile(f"[\x00-\x08\x0b\x0c\x0e-\x1f{ACTIVE}]")
_CSV_ESCAPE = re.compile(r"\\u([0-9a-f]{4})")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
RowDict = dict[str, Any]  # a row as a JSON object, or flat


@dataclass(frozen=True)
class ImageRow:
    """What is known of one image; ``prediction`` is None where ``error`` says why."""

    path: str
    prediction: Prediction | None
    error: str = ""
    version: FileVersion = UNKNOWN_VERSION

    def to_json(self) -> RowDict:
        made = self.prediction
        return {
            "path": self.path,
            "status": "ok" if made else "error",
            "error": self.error or None,
            "size": self.version.size,
            "modified": self.version.modified,
            "predictions": [dict(vars(one)) for one in made.compositions] if made else [],
            "states": [dict(vars(one)) for one in made.states] if made else [],
            "objects": [dict(vars(one)) for one in made.objects] if made else [],
        }


def json_line(value: RowDict) -> str:
    """A row as one line of JSON, with nothing in it that a terminal acts on."""
    return json_text(value) + "\n"


class JsonLines:
    """Writes rows one by one; none waits in a buffer."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, row: ImageRow) -> None:
        self.stream.write(json_line(row.to_json()))
        self.stream.flush()


class RowFormat(ABC):
    """A kind of file that holds rows."""

    suffix: ClassVar[str]

    @abstractmethod
    def write(self, file: Path, rows: Iterable[RowDict], top_k: int) -> None:
        """Write rows, at most ``top_k`` predictions each, in constant memory."""

    @abstractmethod
    def read(self, file: Path) -> Iterator[RowDict]:
        """Yield the rows of a complete file, as they were given to :meth:`write`."""


class JsonLinesFormat(RowFormat):
    suffix = ".jsonl"

    def write(self, file: Path, rows: Iterable[RowDict], top_k: int) -> None:  # noqa: ARG002 - a list has no columns
        with file.open("w", encoding="utf-8", newline="") as stream:
            stream.writelines(map(json_line, rows))

    def read(self, file: Path) -> Iterator[RowDict]:
        with file.open(encoding="utf-8", newline="\n") as stream:
            yield from map(json.loads, stream)


class CsvFormat(RowFormat):
    suffix = ".csv"

    def write(self, file: Path, rows: Iterable[RowDict], top_k: int) -> None:
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(_UnixLines(stream), columns(top_k))
            writer.writeheader()
            for row in rows:
                writer.writerow({name: to_cell(content) for name, content in flatten_row(row).items()})

    def read(self, file: Path) -> Iterator[RowDict]:
        with file.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                yield nest_row({name: from_cell(content) for name, content in row.items()})


class _UnixLines:
    r"""Ends the lines of a csv.writer with ``\n``. It quotes ``\r`` only where its own lines end with it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, line: str) -> None:
        self.stream.write(line.removesuffix("\r\n") + "\n")


class ParquetFormat(RowFormat):
    suffix = ".parquet"

    def write(self, file: Path, rows: Iterable[RowDict], top_k: int) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        types = {"score": pa.float64(), "probability": pa.float64(), "seen": pa.bool_(), "size": pa.int64()}
        schema = pa.schema(
            [(name, types.get(name.rpartition(".")[2], pa.string())) for name in columns(top_k)]
        )
        stream = map(flatten_row, rows)
        with parquet.ParquetWriter(file, schema) as writer:
            while group := list(islice(stream, ROW_GROUP)):
                writer.write_table(pa.Table.from_pylist(group, schema))

    def read(self, file: Path) -> Iterator[RowDict]:
        from pyarrow import parquet

        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(ROW_GROUP):
                yield from map(nest_row, batch.to_pylist())


FORMATS: dict[str, RowFormat] = {one.suffix: one for one in (JsonLinesFormat(), CsvFormat(), ParquetFormat())}


def format_of(file: Path) -> RowFormat:
    """The format that a file's suffix names.

    Raises UsageError for an unknown one.
    """
    found = FORMATS.get(file.suffix.lower())
    if found is None:
        raise UsageError(
            f"The output {row_name(str(file))} has an unknown format.",
            hint=f"Use a name that ends in {', '.join(FORMATS)}.",
        )
    return found


def read_rows(file: Path) -> Iterator[RowDict]:
    """The rows of a complete file, whatever its format, one by one."""
    return format_of(file).read(file)


def columns(top_k: int) -> list[str]:
    """The names of a flat row."""
    return list(IMAGE_FIELDS) + [
        f"{group}.{rank}.{field}"
        for group, fields in RANKED_FIELDS.items()
        for rank in range(1, top_k + 1)
        for field in fields
    ]


def flatten_row(row: RowDict) -> RowDict:
    """A row without nesting."""
    made = {name: row.get(name) for name in IMAGE_FIELDS}
    for group in RANKED_FIELDS:
        for rank, item in enumerate(row[group], 1):
            made |= {f"{group}.{rank}.{field}": content for field, content in item.items()}
    return made


def nest_row(row: RowDict) -> RowDict:
    """The inverse of :func:`flatten_row`; absent, None and the empty text are the same there."""
    made: RowDict = {name: row.get(name) or None for name in IMAGE_FIELDS}
    made["size"] = None if row.get("size") in {None, ""} else int(row["size"])
    for group, fields in RANKED_FIELDS.items():
        made[group] = []
        while (rank := f"{group}.{len(made[group]) + 1}.{fields[0]}") in row and row[rank]:
            stem = rank.removesuffix(fields[0])
            made[group].append({field: typed(field, row[stem + field]) for field in fields})
    return made


def typed(field: str, content: Any) -> Any:
    if field in NUMBERS:
        return float(content)
    return content in {True, "True"} if field == "seen" else content


def to_cell(content: Any) -> Any:
    """A value as it stands in a CSV file."""
    if not isinstance(content, str):
        return content
    text = escape_as_json(content, _NOT_IN_CSV)
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(text: Any) -> Any:
    """The inverse of :func:`to_cell` for text; numbers stay text."""
    if not isinstance(text, str):
        return text
    if text.startswith("'") and _FORMULA.match(text):
        text = text[1:]
    return _CSV_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
