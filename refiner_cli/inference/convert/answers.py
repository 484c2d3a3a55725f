"""Predictions that are converted: the rows of a file, and where their photos lie."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from refiner_cli.core.models.calibration import Level
from refiner_cli.errors import DatasetError
from refiner_cli.inference.formats import read_rows
from refiner_cli.inference.output import read_run_record
from refiner_cli.inference.scan import row_name
from refiner_cli.inference.sources.noted import NotedPlaces
from refiner_cli.inference.sources.source import is_address

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

    path: str
    status: str
    predictions: list[PairGuess] = []
    states: list[NameGuess] = []
    objects: list[NameGuess] = []
    verdict: Level | Literal["unknown"] | None = None  # None: none was asked for
    verdict_state: str | None = None
    verdict_object: str | None = None
    threshold: float | None = None
    inputs: dict[str, Any] | None = None  # what the source said about the image, its box for example

    @property
    def about(self) -> dict[str, Any]:
        return self.inputs or {}

    @property
    def box(self) -> str | None:
        """Which box of its image the row is of; None: it is of the complete image."""
        image, box = self.about.get("image"), self.about.get("box")
        return None if box is None or self.path != f"{image}#{box}" else str(box)

    @property
    def image(self) -> str:
        """What its image is called."""
        return self.path if self.box is None else str(self.about["image"])

    def said(self) -> Said:
        """What the row says of its image: the best pair, or as much of it as its verdict says is sure."""
        if self.verdict is None:
            best = self.predictions[0]
            return Said(best.state, best.object, best.probability)
        state, name = self.verdict_state, self.verdict_object
        if self.verdict == "pair":
            return Said(state, name, self.predictions[0].probability)
        ranked = self.objects if self.verdict == "object" else self.states
        probability = share(ranked, name or state)
        return Said(state, name, self.threshold if probability is None else probability)


@dataclass(frozen=True)
class Said:
    """A state and an object as far as they are said, and how probable they are."""

    state: str | None  # None: not said
    object: str | None
    probability: float | None  # at least the threshold, where the file lists no more; None: nothing is said

    @property
    def text(self) -> str:
        """``"ripe apple"``, ``"apple"``, ``"ripe"`` or nothing."""
        return " ".join(filter(None, (self.state, self.object)))


def share(ranked: Iterable[NameGuess], name: str | None) -> float | None:
    """The probability of a name on its own, if it is listed."""
    return next((one.probability for one in ranked if one.name == name), None)


@dataclass(frozen=True)
class Answer:
    """A photo with the model's guesses, best first."""

    row: AnswerRow
    where: str  # the photo's path, or its address

    @cached_property
    def said(self) -> Said:
        return self.row.said()

    @property
    def address(self) -> str | None:
        """Where it lies, if that is no file of this machine."""
        return self.where if is_address(self.where) else None

    @property
    def file(self) -> Path:
        return Path(self.where)

    @property
    def text_path(self) -> str | None:
        """The absolute path or address as text; None if it is not UTF-8 or holds a control character."""
        path = self.address or str(self.file.absolute())
        return None if _NOT_TEXT.search(path) else path


@dataclass
class Answers:
    """The rows of a file of predictions that are to be converted. Iterating reads the file anew.

    Args:
        file: JSON lines, CSV or Parquet.
        places: what the paths of the rows are relative to.
        min_probability: rows whose best pair has less are left out.
    """

    file: Path
    places: NotedPlaces
    min_probability: float = 0.0
    left_out: Counter[str] = field(default_factory=Counter)  # how many rows the last pass left out, by reason
    verdicts: Counter[str] = field(default_factory=Counter)  # how many rows of the last pass have each

    def __iter__(self) -> Iterator[Answer]:
        """Raises DatasetError for a file that is missing or damaged."""
        self.left_out.clear()
        self.verdicts.clear()
        for row in self._rows():
            if row.status != "ok" or not row.predictions:
                self.left_out["could not be read by predict"] += 1
            elif row.predictions[0].probability < self.min_probability:
                self.left_out["below --min-probability"] += 1
            else:
                self.verdicts.update([row.verdict] if row.verdict else [])
                yield Answer(row, self.places.locate(row.image))

    def first_lost(self) -> Answer | None:
        """The first answer, if none of the first hundred has its photo where that is looked for."""
        first = list(islice((answer for answer in self if not answer.address), 100))
        return first[0] if first and not any(os.path.exists(one.file) for one in first) else None  # noqa: PTH110

    def with_text_paths(self) -> Iterator[tuple[str, Answer]]:
        """The answers for a format that is text, with their absolute paths; others are left out."""
        for answer in self:
            path = answer.text_path
            if path is None:
                self.left_out["with a name that is not text"] += 1
            else:
                yield path, answer

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


def is_unfinished(file: Path) -> bool:
    """Whether predict has not written all rows of a file yet, as the file beside it says."""
    return read_run_record(file).get("complete") is False


def noted_places(file: Path) -> NotedPlaces:
    """What the paths of a file of predictions are relative to, as the file beside it says; else nothing."""
    try:
        places = read_run_record(file)["header"]["places"]
        texts = [place for place in places if isinstance(place, str) and place != "index"]
    except (KeyError, TypeError):
        texts = []
    return NotedPlaces(texts)
