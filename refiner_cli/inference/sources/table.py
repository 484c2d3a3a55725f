"""Tables that list images: CSV, JSON lines or Parquet with a column of paths or addresses.

The other columns are carried into the rows. A relative path is relative to the table's folder.
"""

from __future__ import annotations

import csv
import io
import json
import math
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pyarrow.parquet as pq

from refiner_cli.data.delimiter import delimiter_of
from refiner_cli.data.image_file import UnreadableError
from refiner_cli.inference.scan import ImageFile, row_name
from refiner_cli.inference.sources.bucket import bucket_image
from refiner_cli.inference.sources.source import DAMAGES, is_address
from refiner_cli.inference.sources.store import Store
from refiner_cli.inference.sources.stored import StoredSource
from refiner_cli.inference.sources.web import is_web, web_image

LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
PATH_COLUMNS = (
    "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img_path",
    "url", "image_url",
)  # fmt: skip
ROWS_AT_ONCE = 1024


class TableSource(StoredSource):
    """The images that a table lists."""

    carries_inputs = True

    def images(self) -> Iterator[ImageFile]:
        self.complete = True
        column = None
        try:
            for number, row in enumerate(table_rows(self.store, self.place), 1):
                column = column or path_column(row)
                path = row.get(column)
                if isinstance(path, str) and path:
                    inputs = {key: json_value(value) for key, value in row.items() if key != column}
                    yield resolve_image(self.place, path, inputs)
                else:
                    yield self.failed(f"row {number}", f"its column {column!r} names no file")
        except DAMAGES as error:
            yield self.damaged(error)


def table_rows(store: Store, name: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a table, whose kind its name tells. Raises :data:`DAMAGES`."""
    suffix = Path(name).suffix.lower()
    if suffix == ".parquet":
        with store.open_seekable() as stream, pq.ParquetFile(stream) as table:
            for batch in table.iter_batches(ROWS_AT_ONCE):
                yield from batch.to_pylist()
        return
    with store.open() as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        if suffix in {".csv", ".tsv"}:
            header = text.readline()
            yield from csv.DictReader(chain([header], text), delimiter=delimiter_of(header, is_path_column))
        else:
            yield from json_rows(text)


def is_path_column(cell: str) -> bool:
    """Whether a column of this name holds the images."""
    return cell.strip().lower() in PATH_COLUMNS


def json_rows(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """The objects of a file of JSON lines. Raises UnreadableError."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UnreadableError(f"its line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UnreadableError(f"its line {number} is not an object")
        yield row


def columns_by_name(row: Mapping[str, Any]) -> dict[str, str]:
    """The columns of a table by their names in small letters."""
    return {str(name).strip().lower(): str(name) for name in row if name is not None}


def path_column(row: Mapping[str, Any]) -> str:
    """The column that names the images. Raises UnreadableError if there is none."""
    by_name = columns_by_name(row)
    found = next((by_name[name] for name in PATH_COLUMNS if name in by_name), None)
    if found is None:
        raise UnreadableError(
            f"it has no column of paths, such as 'path'; its columns are {', '.join(by_name) or 'none'}"
        )
    return found


def json_value(value: Any) -> Any:
    """A value of a table as JSON has it, which has no NaN and no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [json_value(one) for one in value]
    if isinstance(value, dict):
        return {str(key): json_value(one) for key, one in value.items()}
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def resolve_image(place: str, path: str, inputs: Mapping[str, Any]) -> ImageFile:
    """The image that a table at ``place`` calls ``path``."""
    return replace(image_at(resolve_address(place, path), row_name(path)), inputs=inputs)


def resolve_address(place: str, path: str) -> str:
    """The path or address of what a table at ``place`` calls ``path``."""
    if is_address(path):
        return path
    if is_web(place):
        return urljoin(place, path)
    if is_address(place):  # of a scheme that urljoin does not know
        scheme, _, table = place.partition("://")
        return f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(table), path.lstrip('/')))}"
    return str(Path(place).parent / path)


def image_at(where: str, name: str) -> ImageFile:
    """The image at a path or an address."""
    if is_web(where):
        return web_image(where, name)
    return bucket_image(where, name) if is_address(where) else ImageFile(Path(where), name)
