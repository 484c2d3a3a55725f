"""A table of photos with their best pair: CSV, as ``refiner dataset create`` reads it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from refiner_cli.inference.convert.answers import Answers
from refiner_cli.inference.convert.writer import AnswerWriter, Converted, ConvertOptions


class CsvTableWriter(AnswerWriter):
    """Columns ``path``, ``state``, ``object`` and ``probability``."""

    suffix = ".csv"

    def write(self, target: Path, answers: Answers, options: ConvertOptions) -> Converted:
        del options
        images = 0
        with target.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["path", "state", "object", "probability"])
            for record in records(answers):
                writer.writerow(record)
                images += 1
        return Converted(
            images, ("next: correct it in a spreadsheet, then: refiner dataset create {out} --out DIR",)
        )


def records(answers: Answers) -> Iterator[tuple[str, str, str, float]]:
    """Absolute paths: no spreadsheet takes one for a formula, and the table may be moved."""
    for path, answer in answers.with_text_paths():
        best = answer.best
        yield path, as_text(best.state), as_text(best.object), round(best.probability, 6)


def as_text(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return name.lstrip("=+-@\t\r ") or name
