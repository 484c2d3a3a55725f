"""The row of an image, and the formats it is written in: JSON lines, CSV and Parquet.

In a CSV file a text that a spreadsheet would take for a formula starts with an apostrophe, and control
characters are escaped; reading undoes both. The columns: :mod:`refiner_cli.inference.columns`.
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TextIO

from refiner_cli.errors import UsageError
from refiner_cli.inference.columns import (
    INPUTS,
    RowDict,
    flatten_row,
    from_cell,
    nest_row,
    short_columns,
    shorten_row,
    to_cell,
    wide_columns,
)
from refiner_cli.inference.recogniser import Prediction
from refiner_cli.inference.scan import UNKNOWN_VERSION, FileVersion, row_name
from refiner_cli.printable import json_text

ROW_GROUP = 8192  # rows of a Parquet file that are in memory at once


@dataclass(frozen=True)
class ImageRow:
    """What is known of one image; ``prediction`` is None where ``error`` says why."""

    path: str
    prediction: Prediction | None
    error: str = ""
    version: FileVersion = UNKNOWN_VERSION
    inputs: Mapping[str, Any] = field(default_factory=dict)  # what the source says about the image

    def to_json(self) -> RowDict:
        made, said = self.prediction, self.prediction.verdict if self.prediction else None
        inputs = {"inputs": dict(self.inputs)} if self.inputs else {}
        listed = made.object_states if made else ()
        object_states = [
            {"object": one.object, "states": [dict(vars(state)) for state in one.states]} for one in listed
        ]
        return {
            "path": self.path,
            "status": "ok" if made else "error",
            "error": self.error or None,
            "size": self.version.size,
            "modified": self.version.modified,
            "verdict": said.level if said else None,
            "verdict_state": said.state if said else None,
            "verdict_object": said.object if said else None,
            "threshold": said.threshold if said else None,
            "predictions": [dict(vars(one)) for one in made.compositions] if made else [],
            "states": [dict(vars(one)) for one in made.states] if made else [],
            "objects": [dict(vars(one)) for one in made.objects] if made else [],
            **({"object_states": object_states} if object_states else {}),
            **inputs,
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

    @property
    def layout(self) -> str | None:
        """Which of several layouts is written; rows of two are not mixed."""
        return None

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


@dataclass(frozen=True)
class CsvFormat(RowFormat):
    """Comma-separated values, in the short layout or the wide one; either is read."""

    wide: bool = False
    inputs: bool = False  # a column for what the source says about the images
    suffix: ClassVar[str] = ".csv"

    @property
    def layout(self) -> str:
        return "wide" if self.wide else "short"

    def write(self, file: Path, rows: Iterable[RowDict], top_k: int) -> None:
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = self.open_writer(stream, top_k)
            for row in rows:
                writer.writerow(self.cells(row))

    def open_writer(self, stream: TextIO, top_k: int) -> csv.DictWriter[str]:
        """A writer whose header is written."""
        names = (wide_columns if self.wide else short_columns)(top_k, inputs=self.inputs)
        writer = csv.DictWriter(_UnixLines(stream), names)
        writer.writeheader()
        return writer

    def cells(self, row: RowDict) -> RowDict:
        """A row as the writer takes it."""
        flat = flatten_row(row) if self.wide else shorten_row(row)
        return {name: to_cell(content) for name, content in flat.items()}

    def read(self, file: Path) -> Iterator[RowDict]:
        with file.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                # JSON needs no escape in a cell, and its own are not those of a cell.
                cells = {name: text if name == INPUTS else from_cell(text) for name, text in row.items()}
                yield nest_row(cells)


class CsvLines:
    """Writes rows as CSV one by one; none waits in a buffer."""

    def __init__(self, stream: TextIO, layout: CsvFormat, top_k: int) -> None:
        self.stream, self.layout = stream, layout
        self.writer = layout.open_writer(stream, top_k)

    def write(self, row: ImageRow) -> None:
        self.writer.writerow(self.layout.cells(row.to_json()))
        self.stream.flush()


class _UnixLines:
    r"""Ends the lines of a csv.writer with ``\n``. It quotes ``\r`` only where its own lines end with it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, line: str) -> None:
        self.stream.write(line.removesuffix("\r\n") + "\n")


@dataclass(frozen=True)
class ParquetFormat(RowFormat):
    inputs: bool = False  # a column for what the source says about the images
    suffix: ClassVar[str] = ".parquet"

    def write(self, file: Path, rows: Iterable[RowDict], top_k: int) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        numbers = dict.fromkeys(("score", "probability", "threshold"), pa.float64())
        types = {**numbers, "seen": pa.bool_(), "size": pa.int64()}
        schema = pa.schema(
            [
                (name, types.get(name.rpartition(".")[2], pa.string()))
                for name in wide_columns(top_k, inputs=self.inputs)
            ]
        )
        stream = map(flatten_row, rows)
        # pyarrow opens no path that is not UTF-8.
        with file.open("wb") as target, parquet.ParquetWriter(target, schema) as writer:
            while group := list(islice(stream, ROW_GROUP)):
                writer.write_table(pa.Table.from_pylist(group, schema))

    def read(self, file: Path) -> Iterator[RowDict]:
        from pyarrow import parquet

        with file.open("rb") as source, parquet.ParquetFile(source) as table:
            for batch in table.iter_batches(ROW_GROUP):
                yield from map(nest_row, batch.to_pylist())


FORMATS: dict[str, RowFormat] = {one.suffix: one for one in (JsonLinesFormat(), CsvFormat(), ParquetFormat())}


def format_of(file: Path, *, wide: bool = False, inputs: bool = False) -> RowFormat:
    """The format that a file's suffix names.

    Args:
        wide: write all columns of a CSV file.
        inputs: write what the source says about the images.

    Raises UsageError for an unknown one.
    """
    found = FORMATS.get(file.suffix.lower())
    if found is None:
        raise UsageError(
            f"The file {row_name(str(file))} has an unknown format.",
            hint=f"Use a name that ends in {', '.join(FORMATS)}.",
        )
    if isinstance(found, CsvFormat):
        return CsvFormat(wide=wide, inputs=inputs)
    return ParquetFormat(inputs=inputs) if isinstance(found, ParquetFormat) else found


def read_rows(file: Path) -> Iterator[RowDict]:
    """The rows of a complete file, whatever its format, one by one."""
    return format_of(file).read(file)
