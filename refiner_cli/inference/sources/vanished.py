"""Which images of earlier rows no longer exist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from refiner_cli.inference.sources.noted import NotedPlaces


def gone_test(places: NotedPlaces) -> Callable[[str], bool]:
    """Whether the image of a row was deleted from its folder."""

    def is_gone(name: str) -> bool:
        if name.endswith("/"):  # a folder that could not be opened, and now can
            return True
        try:
            Path(places.locate(name)).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except (OSError, ValueError):  # out of reach, not gone
            return False
        return False

    return is_gone


def lists_all(name: str) -> bool:  # noqa: ARG001 - the answer is the same for all names
    """Of an index or an archive: an image that it does not list is gone."""
    return True
