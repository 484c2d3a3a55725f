"""Where refiner keeps its files, and how a dataset is found by its name.

The environment is passed in as a value; nothing here reads it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from refiner_cli.data.benchmark import METADATA, SPLIT_FOLDER
from refiner_cli.errors import ConfigError, DatasetError
from refiner_cli.printable import quoted


@dataclass(frozen=True)
class Home:
    """The folder of everything that refiner keeps between calls."""

    root: Path

    @property
    def datasets(self) -> Path:
        """Prepared datasets, the archives they came from, and the lock file."""
        return self.root / "datasets"


def home(environment: Mapping[str, str]) -> Home:
    """``REFINER_HOME`` if it is set, else the system's cache folder for this program.

    Raises ConfigError where the user has no home directory.
    """
    chosen = environment.get("REFINER_HOME", "").strip()
    try:
        root = (
            Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("refiner", appauthor=False)
        )
    except RuntimeError:
        root = Path("~")
    if root.parts[:1] == ("~",):  # platformdirs leaves it so, and a folder of that name would be created
        raise ConfigError(
            "There is no home directory to keep files in.", hint="Set REFINER_HOME to a folder."
        )
    return Home(root)


def looks_like_benchmark(folder: Path) -> bool:
    """Whether a folder has at least a part of the published folder format."""
    return (folder / SPLIT_FOLDER).is_dir() or (folder / METADATA).is_file()


def find_dataset(text: str, place: Callable[[], Home], names: Callable[[], Collection[str]]) -> Path:
    """The folder that a user means: a catalogue name first, then a path; ``./name`` is always a path.

    Args:
        place, names: called only if the text may be a catalogue name, so that a folder can be used
            without a home directory and whatever the state of the catalogues.

    Raises:
        DatasetError: the name is in the catalogue but not downloaded, or is unknown.
    """
    is_path = os.sep in text or "/" in text or text in {".", ".."}
    if is_path and Path(text).is_dir():
        return Path(text)
    known = names()
    if text in known and not is_path:
        folder = place().datasets / text
        if folder.is_dir():
            return folder
        if looks_like_benchmark(Path(text)):
            return Path(text)
        raise DatasetError(
            f"The dataset {text} is not downloaded.", hint=f"Run 'refiner download {quoted(text)}'."
        )
    if Path(text).is_dir():
        return Path(text)
    near = difflib.get_close_matches(text, known, 1)
    hint = (
        f"Did you mean '{near[0]}'?"
        if near and not is_path
        else f"The catalogue has {', '.join(sorted(known))}."
    )
    raise DatasetError(
        f"There is no dataset {text!r}: neither a folder nor a name in the catalogue.", hint=hint
    )
