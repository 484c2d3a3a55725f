"""Checksums of the files of a folder, so that damage is noticed before the files are used."""

from __future__ import annotations

import json
from pathlib import Path

from refiner_cli.data.safe_paths import relative
from refiner_cli.errors import ModelFileError
from refiner_cli.files import sha256

CHECKSUMS = "checksums.json"


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of every file of a folder into checksums.json."""
    files = {
        file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()
    }
    sums = {name: sha256(file) for name, file in files.items() if name != CHECKSUMS}
    (folder / CHECKSUMS).write_text(json.dumps({"sha256": sums}, indent=2) + "\n", "utf-8")


def verify_checksums(folder: Path) -> None:
    """Raise ModelFileError, naming the file, unless every listed file is there and as it was written.

    Files that are not listed do not matter: file managers leave some of their own.
    """
    file = folder / CHECKSUMS
    try:
        sums = dict(json.loads(file.read_bytes())["sha256"])
        if not sums:
            raise ValueError("no checksums")
    except FileNotFoundError:
        raise ModelFileError(f"{folder} is incomplete: {CHECKSUMS} is missing.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{file} is damaged ({type(error).__name__}).") from None
    for name, expected in sums.items():
        try:
            found = sha256(folder / relative(name))
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{folder / name} is damaged: {error}.") from None
        if found != expected:
            raise ModelFileError(f"{folder / name} is damaged: its checksum differs.")
