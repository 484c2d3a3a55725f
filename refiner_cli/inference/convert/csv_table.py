"""A table of photos with what is said of them: CSV, as ``refiner dataset create`` reads it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from refiner_cli.inference.convert.answers import Answers
from refiner_cli.inference.convert.writer import AnswerWriter, Converted, ConvertOptions


class CsvTableWriter(AnswerWriter):
    """Columns ``path``, ``state``, ``object``, ``probability`` and ``verdict``; empty what is not said."""

    suffix = ".csv"

    def write(self, target: Path, answers: Answers, options: ConvertOptions) -> Converted:
        del options
        images = 0
        with target.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["path", "state", "object", "probability", "verdict"])
            for record in records(answers):
                writer.writerow(record)
                images += 1
        return Converted(
            images, ("next: correct it in a spreadsheet, then: refiner dataset create {out} --out DIR",)
        )


def records(answers: Answers) -> Iterator[tuple[str, str, str, float | str, str]]:
    """Absolute paths: no spreadsheet takes one for a formula, and the table may be moved."""
    for path, answer in answers.with_text_paths():
        said = answer.said
        probability = "" if said.probability is None else round(said.probability, 6)
        yield path, as_text(said.state), as_text(said.object), probability, answer.row.verdict or ""


def as_text(name: str | None) -> str:
    """A name that no spreadsheet takes for a formula; empty for None."""
    if name is None:
        return ""
    return name.lstrip("=+-@\t\r ") or name
