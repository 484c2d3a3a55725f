"""The rows of a prediction on stdout, its progress, and the line at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.cells import cell_len

from refiner_cli.cli.console import terminal
from refiner_cli.cli.predict_request import PredictRequest, RowsFormat
from refiner_cli.errors import UsageError
from refiner_cli.printable import printable

if TYPE_CHECKING:
    from refiner_cli.data.labels import LabelSpace
    from refiner_cli.inference.formats import ImageRow
    from refiner_cli.inference.output import RowCount
    from refiner_cli.inference.recogniser import Composition, Prediction
    from refiner_cli.inference.runner import RowWriter

PROBABILITY = 6  # columns of "100.0%"
NEXT_TWO = 36  # columns that a table keeps for the second and third guess, where there is room
SHORTEST_PATH, LONGEST_PATH, LONGEST_NAME = 16, 44, 28  # columns


def choose_rows(asked: RowsFormat | None, out: Path | None, *, wide: bool, parts: bool = False) -> RowsFormat:
    """How rows are written: as asked, else by the file's ending, else what suits stdout.

    Args:
        parts: whether ``out`` is a folder of parts.

    Raises UsageError for what does not fit together.
    """
    if parts:
        if asked not in {None, "jsonl", "parquet"}:
            raise UsageError(f"Parts are not written as {asked}.", hint="Use --format jsonl or parquet.")
        return asked or "jsonl"
    ending = out.suffix.lower().removeprefix(".") if out else ""
    if out and asked and asked != ending:
        raise UsageError(
            f"--format {asked} contradicts the output {out}.", hint="The ending of the file says the format."
        )
    if asked == "parquet" and out is None:
        raise UsageError("Parquet is not written to stdout.", hint="Add -o FILE.parquet.")
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    chosen: RowsFormat = asked or ("table" if on_terminal else "jsonl")
    if wide and "csv" not in {ending, chosen}:
        raise UsageError("--wide adds columns to CSV only.", hint="Use -o FILE.csv or --format csv.")
    return chosen


def open_writer(stream: TextIO, request: PredictRequest, space: LabelSpace) -> RowWriter:
    """What writes rows to stdout."""
    from refiner_cli.inference.formats import CsvFormat, CsvLines, JsonLines

    if request.rows == "table":
        longest = max(map(cell_len, space.states)) + 1 + max(map(cell_len, space.objects))
        return TableLines(stream, terminal.out.width, min(longest, LONGEST_NAME))
    if request.rows == "csv":
        return CsvLines(stream, CsvFormat(wide=request.wide), request.top_k)
    return JsonLines(stream)


@dataclass
class TableLines:
    """Writes rows as lines of a table, each as it comes: path, composition, probability, next two.

    Nothing is cut off: what does not fit into ``width`` columns goes on in the next line.
    """

    stream: TextIO
    width: int
    name_width: int  # of a composition
    begun: bool = False

    @property
    def path_width(self) -> int:
        rest = self.width - self.name_width - PROBABILITY - NEXT_TWO - 6
        return max(SHORTEST_PATH, min(rest, LONGEST_PATH))

    def write(self, row: ImageRow) -> None:
        if not self.begun:
            self.begun = True
            self.line("image", "composition", "prob.", "next")
        if row.prediction is None:
            self.line(printable(row.path), row.error)
            return
        best, *others = row.prediction.compositions
        guesses = ", ".join(f"{name_of(one)} {one.probability:.1%}" for one in others[:2])
        name, probability = verdict_of(row.prediction)
        if name != name_of(best):
            guesses = ", ".join(filter(None, [f"{name_of(best)} {best.probability:.1%}", guesses]))
        self.line(printable(row.path), name, f"{probability:.1%}", guesses)

    def line(self, path: str, name: str, probability: str = "", guesses: str = "") -> None:
        """One row, in as many lines as it needs."""
        indent = " " * (self.path_width + 2)
        text = pad(path, self.path_width) + "  "
        if cell_len(path) > self.path_width:
            text = f"{path}\n{indent}"
        text += f"{pad(name, self.name_width)}  {probability:>{PROBABILITY}}" if probability else name
        if guesses:
            used = self.path_width + self.name_width + PROBABILITY + 4
            fits = used + 2 + cell_len(guesses) <= self.width
            text += f"  {guesses}" if fits else f"\n{wrap_commas(guesses, self.width, indent)}"
        self.stream.write(f"{text.rstrip()}\n")
        self.stream.flush()


def wrap_commas(text: str, width: int, indent: str) -> str:
    """Indented lines of at most ``width`` columns, broken after commas."""
    lines: list[str] = []
    for part in text.split(", "):
        if lines and cell_len(f"{lines[-1]}, {part},") <= width:
            lines[-1] += f", {part}"
        else:
            lines.append(f"{indent}{part}")
    return ",\n".join(lines)


def pad(text: str, width: int) -> str:
    """Text on a terminal, at least ``width`` columns wide."""
    return text + " " * (width - cell_len(text))


def verdict_of(made: Prediction) -> tuple[str, float]:
    """What a table says of an image, and how probable it is: the best pair, or what is sure of it."""
    level = made.verdict.level if made.verdict else "pair"
    if level == "object":
        return printable(f"? {made.objects[0].name}"), made.objects[0].probability
    if level == "state":
        return printable(f"{made.states[0].name} ?"), made.states[0].probability
    best = made.compositions[0]
    return "unknown" if level == "unknown" else name_of(best), best.probability


def name_of(one: Composition) -> str:
    return printable(f"{one.state} {one.object}")


@dataclass
class ProgressListener:
    """Shows progress and notes."""

    progress: Callable[[int, int], None]
    total: Callable[[], int]
    names_errors: bool = False  # the rows on the terminal do
    kept: int = 0
    new: int = 0
    began: float = field(default_factory=time.monotonic)

    def row_written(self, row: ImageRow) -> None:
        self.new += 1
        if row.error and not self.names_errors:
            terminal.note(row.error)
        self.show()

    def row_kept(self) -> None:
        self.kept += 1
        self.show()

    def note(self, text: str) -> None:
        terminal.note(text)

    def show(self) -> None:
        """Images that have their row already count neither as done nor as to be done."""
        if total := self.total():
            self.progress(self.new, max(total - self.kept, 1))
        else:
            self.progress(self.new, 0)

    @property
    def rate(self) -> float:
        """New images per second."""
        return self.new / max(time.monotonic() - self.began, 1e-9)


def summarise(request: PredictRequest, made: RowCount, listener: ProgressListener) -> str:
    """The line at the end: how many, how many errors, how fast, where it lies, what to do next."""
    parts = [count("image", made.images)]
    if listener.kept:
        parts.append(f"{listener.kept:,} already done")
    if listener.new:
        parts.append(f"{listener.new:,} new at {listener.rate:,.1f}/s" if listener.kept else
                     f"{listener.rate:,.1f}/s")  # fmt: skip
    if made.errors:
        parts.append(f"{made.errors:,} could not be read")
    if made.dropped:
        parts.append(f"{count('row', made.dropped)} dropped, their images are gone")
    if request.out:
        parts.append(f"rows in {request.out}")
    return "; ".join([", ".join(parts), *next_steps(request)])


def next_steps(request: PredictRequest) -> list[str]:
    """What most people want after a prediction."""
    if request.gallery:
        return [f"next: open {request.gallery} in a browser"]
    if request.out:
        return ["next: look through them, with the same command and --gallery FILE.html"]
    return ["next: keep the rows, with -o FILE.csv"] if request.rows == "table" else []


def count(noun: str, number: int) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
