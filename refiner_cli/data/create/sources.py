"""Where a user's photos come from: a folder, a table, or an export of Label Studio."""

from __future__ import annotations

from pathlib import Path

from refiner_cli.data.create.folders import read_folders
from refiner_cli.data.create.label_studio import read_export
from refiner_cli.data.create.photos import PhotoCollection, one_spelling
from refiner_cli.data.create.tables import TABLE_SUFFIXES, read_table
from refiner_cli.data.paths import looks_like_benchmark
from refiner_cli.errors import DatasetError
from refiner_cli.printable import quoted

EXPORT_SUFFIX = ".json"  # of Label Studio


def read_photos(source: Path, images: Path | None = None) -> PhotoCollection:
    """Read a folder of ``state_object/`` or ``state/object/`` folders, a table, or a Label Studio export.

    Args:
        images: the folder that paths in a file are relative to; None: the file's own.

    Raises:
        DatasetError: nothing is there, or it cannot be understood; names the folder or line.
    """
    if source.is_dir():
        if looks_like_benchmark(source):
            raise DatasetError(
                f"{source} is a dataset already.", hint=f"Train on it: refiner train {quoted(source)}"
            )
        found = read_folders(source)
    elif not source.exists():
        raise DatasetError(f"There is no file or folder {source}.")
    elif source.suffix.lower() in TABLE_SUFFIXES and source.is_file():
        found = read_table(source, images)
    elif source.suffix.lower() == EXPORT_SUFFIX and source.is_file():
        found = read_export(source, images)
    else:
        raise DatasetError(
            f"{source} is neither a folder nor a file in {', '.join((*TABLE_SUFFIXES, EXPORT_SUFFIX))}."
        )
    photos, respelt = one_spelling(found.photos)
    return PhotoCollection(tuple(photos), found.unlabelled, (*found.notes, *respelt))
