"""Where refiner keeps what it fetches, and how a dataset is found by its name.

The environment comes in as a value; nothing here reads it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from refiner_cli.data.benchmark import METADATA, SPLIT_FOLDER
from refiner_cli.errors import DatasetError


@dataclass(frozen=True)
class Home:
    """The folder of everything that refiner keeps between calls."""

    root: Path

    @property
    def datasets(self) -> Path:
        """Prepared datasets, the archives they came from, and the lock file."""
        return self.root / "datasets"


def home(environment: Mapping[str, str]) -> Home:
    """``REFINER_HOME`` if it is set, else the system's cache folder for this program."""
    chosen = environment.get("REFINER_HOME", "").strip()
    return Home(
        Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("refiner", appauthor=False)
    )


def looks_like_benchmark(folder: Path) -> bool:
    """Whether a folder holds at least a part of the published folder format."""
    return (folder / SPLIT_FOLDER).is_dir() or (folder / METADATA).is_file()


def find_dataset(text: str, place: Home, names: Collection[str]) -> Path:
    """The folder that a user means: a catalogue name first, then a path; ``./name`` is always a path.

    Raises:
        DatasetError: the catalogue knows the name but it is not downloaded, or nobody knows it.
    """
    is_path = os.sep in text or "/" in text or text in {".", ".."}
    if text in names and not is_path:
        folder = place.datasets / text
        if folder.is_dir():
            return folder
        if looks_like_benchmark(Path(text)):
            return Path(text)
        raise DatasetError(f"The dataset {text} is not downloaded.", hint=f"Run 'refiner download {text}'.")
    if Path(text).is_dir():
        return Path(text)
    near = difflib.get_close_matches(text, names, 1)
    hint = (
        f"Did you mean '{near[0]}'?"
        if near and not is_path
        else f"The catalogue has {', '.join(sorted(names))}."
    )
    raise DatasetError(
        f"There is no dataset {text!r}: neither a folder nor a name in the catalogue.", hint=hint
    )
