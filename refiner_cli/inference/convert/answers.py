"""Predictions that are converted: the rows of a file, and where their photos lie."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from refiner_cli.errors import DatasetError
from refiner_cli.inference.formats import read_rows
from refiner_cli.inference.scan import row_name, row_path

SIDECAR = ".run.json"
_NOT_TEXT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


class PairGuess(BaseModel):
    """A pair that a row names."""

    state: str
    object: str
    probability: float
    seen: bool = False


class NameGuess(BaseModel):
    """A state or an object that a row names."""

    name: str
    probability: float


class AnswerRow(BaseModel):
    """A row as predict wrote it; fields that are not named here are in ``model_extra``."""

    model_config = ConfigDict(extra="allow")

    path: str
    status: str
    predictions: list[PairGuess] = []
    states: list[NameGuess] = []
    objects: list[NameGuess] = []


@dataclass(frozen=True)
class Answer:
    """A photo with the model's guesses, best first."""

    row: AnswerRow
    file: Path

    @property
    def best(self) -> PairGuess:
        return self.row.predictions[0]

    @property
    def text_path(self) -> str | None:
        """The absolute path as text; None if it is not UTF-8 or holds a control character."""
        path = str(self.file.absolute())
        return None if _NOT_TEXT.search(path) else path


@dataclass
class Answers:
    """The rows of a file of predictions that are to be converted. Iterating reads the file anew.

    Args:
        file: JSON lines, CSV or Parquet.
        places: what the paths of the rows are relative to, as :func:`noted_places` gives it.
        min_probability: rows whose best pair has less are left out.
    """

    file: Path
    places: Sequence[str]
    min_probability: float = 0.0
    left_out: Counter[str] = field(default_factory=Counter)  # how many rows the last pass left out, by reason

    def __iter__(self) -> Iterator[Answer]:
        """Raises DatasetError for a file that is missing or damaged."""
        self.left_out.clear()
        for row in self._rows():
            if row.status != "ok" or not row.predictions:
                self.left_out["could not be read by predict"] += 1
            elif row.predictions[0].probability < self.min_probability:
                self.left_out["below --min-probability"] += 1
            else:
                inputs = (row.model_extra or {}).get("inputs") or {}
                yield Answer(row, locate_noted(self.places, inputs.get("image", row.path)))

    def names(self) -> tuple[set[str], set[str]]:
        """The states and the objects that any row names."""
        states, objects = set[str](), set[str]()
        for answer in self:
            row = answer.row
            states.update([one.name for one in row.states], [one.state for one in row.predictions])
            objects.update([one.name for one in row.objects], [one.object for one in row.predictions])
        return states, objects

    def _rows(self) -> Iterator[AnswerRow]:
        try:
            for row in read_rows(self.file):
                yield AnswerRow.model_validate(row)
        except FileNotFoundError:
            raise DatasetError(f"There is no file {row_name(str(self.file))}.") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
            reason = " ".join(str(error).split()[:20])
            raise DatasetError(
                f"The predictions {row_name(str(self.file))} are damaged ({reason}).",
                hint="The same predict command completes an unfinished file.",
            ) from None


def sidecar(file: Path) -> Path:
    """The file beside rows that says how they were made."""
    return file.with_name(file.name + SIDECAR)


def noted_places(file: Path) -> list[str]:
    """What the paths of a file of predictions are relative to, as the file beside it says; else nothing."""
    try:
        header = json.loads(sidecar(file).read_text("utf-8"))["header"]
        return [place for place in header["places"] if isinstance(place, str) and place != "index"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def locate_noted(places: Sequence[str], name: str) -> Path:
    """The photo that a row names.

    Args:
        places: one folder, or ``given = folder`` for each of several, whose names begin with ``given``.
    """
    path = row_path(name)
    if len(places) == 1 and " = " not in places[0]:
        return Path(row_path(places[0])) / path
    for place in places:
        given, _, folder = row_path(place).rpartition(" = ")
        if path.startswith(f"{given.rstrip('/')}/"):
            return Path(folder) / path[len(given.rstrip("/")) + 1 :]
    return Path(path)
