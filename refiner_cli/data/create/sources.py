"""Where a user's photos come from: a folder or a table."""

from __future__ import annotations

from pathlib import Path

from refiner_cli.data.create.folders import read_folders
from refiner_cli.data.create.photos import PhotoCollection, one_spelling
from refiner_cli.data.create.tables import TABLE_SUFFIXES, read_table
from refiner_cli.data.paths import looks_like_benchmark
from refiner_cli.errors import DatasetError


def read_photos(source: Path) -> PhotoCollection:
    """Read a folder of ``state_object/`` or ``state/object/`` folders, a CSV, TSV or JSON-lines file.

    Raises:
        DatasetError: nothing is there, or it cannot be understood; names the folder or line.
    """
    if source.is_dir():
        if looks_like_benchmark(source):
            raise DatasetError(f"{source} is a dataset already.", hint=f"Train on it: refiner train {source}")
        found = read_folders(source)
    elif not source.exists():
        raise DatasetError(f"There is no file or folder {source}.")
    elif source.suffix.lower() in TABLE_SUFFIXES and source.is_file():
        found = read_table(source)
    else:
        raise DatasetError(f"{source} is neither a folder nor a file in {', '.join(TABLE_SUFFIXES)}.")
    photos, respelt = one_spelling(found.photos)
    return PhotoCollection(tuple(photos), found.unlabelled, (*found.notes, *respelt))
