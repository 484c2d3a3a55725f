"""What rows and indexes note of where their images lie, so that a later command finds them.

One place that the names are relative to is noted as it is, an absolute path or an address. Of several, each
is noted as ``GIVEN = PLACE``: names begin with what the place was called when it was given.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from refiner_cli.inference.scan import is_folder, row_name, row_path
from refiner_cli.inference.sources.source import identify_place, is_address
from refiner_cli.inference.sources.table import LIST_SUFFIXES, resolve_address

BETWEEN = " = "  # what was given and where it lies


class NotedPlaces:
    """Some places that were noted.

    Attributes:
        texts: as they were noted.
        single: the one place that names are relative to; None: names begin with what was given.
        by_given: every place by what names begin with.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts = list(texts)
        found = [split_note(text) for text in self.texts]
        self.single = found[0][1] if len(found) == 1 and not found[0][0] else None
        self.by_given = {(given or row_name(place)).rstrip("/"): place for given, place in found}

    def folders(self) -> list[Path]:
        """The places that are paths of this machine."""
        return [Path(place) for place in self.by_given.values() if not is_address(place)]

    def locate(self, name: str) -> str:
        """The path or address of the image that goes by a name."""
        if self.single is not None:
            return below(self.single, row_path(name))
        end = len(name)
        while end > 0:
            if (place := self.by_given.get(name[:end])) is not None:
                return below(place, row_path(name[end + 1 :]))
            end = name.rfind("/", 0, end)
        return row_path(name)


def note_places(places: Iterable[tuple[str, str]], *, single: bool) -> list[str]:
    """What is noted of some places.

    Args:
        places: what names begin with, and the path or address from here.
        single: whether names are relative to the one that there is.
    """
    if single:
        return [identify_place(place) for _, place in places]
    return [f"{row_name(given)}{BETWEEN}{identify_place(place)}" for given, place in places]


def split_note(text: str) -> tuple[str, str]:
    """What was given, "" where names are relative to the place, and the place."""
    given, between, place = text.rpartition(BETWEEN)
    found = row_path(place)
    if between and (is_address(found) or Path(found).is_absolute()):
        return given, found
    return "", row_path(text)


def below(place: str, path: str) -> str:
    """What lies at a path below a place; the paths of a table are relative to its folder."""
    if not path:
        return place
    if place.lower().endswith(LIST_SUFFIXES) and not is_folder(Path(place)):
        return resolve_address(place, path)
    return f"{place.rstrip('/')}/{path}" if is_address(place) else str(Path(place, path))
