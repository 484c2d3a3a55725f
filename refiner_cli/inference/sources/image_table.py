"""Parquet files that hold the images themselves, as data sets on the Hugging Face Hub do.

An image is a struct of ``bytes`` and ``path`` (the ``Image`` feature of ``datasets``), or plain bytes. The
other columns are carried into the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refiner_cli.inference.scan import FileVersion, ImageFile, row_name
from refiner_cli.inference.sources.content import Loaded
from refiner_cli.inference.sources.source import DAMAGES
from refiner_cli.inference.sources.stored import StoredSource
from refiner_cli.inference.sources.table import json_value, resolve_image

IMAGES_AT_ONCE = 16
BYTES_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "content", "data")


class ImageTable(StoredSource):
    """The images in one Parquet file."""

    is_unit = True
    carries_inputs = True

    def images(self) -> Iterator[ImageFile]:
        self.complete = True
        version = self.store.version()
        try:
            with (
                self.store.open_seekable() as stream,
                pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20) as table,
            ):
                column, number = image_column(table.schema_arrow), 0
                for batch in table.iter_batches(IMAGES_AT_ONCE, use_threads=False):
                    for row in batch.to_pylist():
                        yield self.image(row, str(column), number, version)
                        number += 1
        except DAMAGES as error:
            yield self.damaged(error)

    def image(self, row: Mapping[str, Any], column: str, number: int, version: FileVersion) -> ImageFile:
        inputs = {
            key: json_value(one) for key, one in row.items() if key != column and not isinstance(one, bytes)
        }
        value = row[column]
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        name = str(path) if path else f"{number:08d}"
        if isinstance(data, bytes):
            seen = replace(version, size=len(data))
            shown = row_name(f"{self.place}/{name}")
            return ImageFile(Path(shown), row_name(name), Loaded(data), seen, inputs=inputs, shown=shown)
        if path:
            return resolve_image(self.place, str(path), inputs)
        return self.failed(name, "it has neither bytes nor a path")


def image_column(schema: pa.Schema) -> str | None:
    """The column that holds images, if there is one."""
    for field in schema:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return str(field.name)
    binary = {field.name for field in schema
              if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)}  # fmt: skip
    return next((name for name in BYTES_COLUMNS if name in binary), None)
