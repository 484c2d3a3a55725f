"""The terminal: results on stdout, everything else on stderr.

With ``--json`` a command prints one object with a "schema" field to stdout and nothing else there.
Text is never markup: paths, labels and messages are printed as they are (:class:`PlainConsole`). What is
to be coloured is a :class:`rich.text.Text`.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from refiner_cli.cli.progress import show_progress
from refiner_cli.data.progress import Progress, Report
from refiner_cli.errors import RefinerError
from refiner_cli.printable import as_argument, json_text, printable

PARTLY_DONE = 5
INTERRUPTED = 130
TERMINATED = 143
MARKDOWN_WIDTH = 100  # columns; longer lines are hard to read

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]


class PlainConsole(Console):
    """A console on which text is text: no markup in brackets, no emoji codes, no control characters."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


@dataclass
class Terminal:
    """Both streams and the global options. The one object that prints."""

    debug: bool = False
    quiet: bool = False
    tables: int = 0  # printed; on a terminal an empty line stands before each but the first
    out: Console = field(default_factory=PlainConsole)
    err: Console = field(default_factory=lambda: PlainConsole(stderr=True))

    def note(self, text: str) -> None:
        """Print a line about progress or circumstances, unless ``--quiet``; a terminal wraps it at words."""
        if not self.quiet:
            self.err.print(self._wrapped(text))

    def _wrapped(self, text: str) -> str:
        """A line for stderr."""
        return wrap_words(printable(text), self.err.width if self.err.is_terminal else None)

    def next(self, *words: object, why: str = "") -> None:
        """Print the one command that most people want now; ``why`` ends the line."""
        command = shlex.join(map(as_argument, words))
        if not self.quiet:  # never wrapped: it is copied
            self.err.print(f"next: {command}{f', {why}' if why else ''}")

    def data(self, text: str) -> None:
        """Print a line of the result, exactly as it is."""
        self.out.print(text)

    def words(self, text: str, indent: str = "", hanging: str = "") -> None:
        """Print a sentence of the result, which a terminal wraps at words; see :func:`wrap_words`."""
        width = self.out.width if self.out.is_terminal else None
        self.out.print(wrap_words(printable(text), width, indent, hanging))

    def table(self, table: Table) -> None:
        """Print a table; one that is wider than the terminal in parts, each with the first column."""
        if self.out.is_terminal:
            table.title = wrap_words(printable(str(table.title or "")), self.out.width)
            if self.tables and table.title:
                self.out.print()
        self.tables += 1
        for part in self._parts(table) if self.out.is_terminal else [table]:
            part.width = self._natural_width(part)
            if self.out.is_terminal and part.width > self.out.width:  # a text: wrapped, never cut off
                part.width = self.out.width
            self.out.print(part)

    def _natural_width(self, table: Table) -> int:
        return Measurement.get(self.out, self.out.options.update(max_width=1000), table).maximum

    def _parts(self, table: Table) -> Iterator[Table]:
        """The table itself if it fits, else as many of its columns at a time as fit."""
        if self._natural_width(table) <= self.out.width:
            yield table
            return
        first, *others = range(len(table.columns))
        while others:
            count = len(others)
            part = some_columns(table, [first, *others])
            while count > 1 and self._natural_width(part) > self.out.width:
                count -= 1
                part = some_columns(table, [first, *others[:count]])
            others = others[count:]
            yield part
            table.title = None

    def markdown(self, text: str) -> None:
        """Print a page: rendered on a terminal, as it is into a pipe or file."""
        if self.out.is_terminal:
            from rich.markdown import Markdown

            width = min(self.out.width, MARKDOWN_WIDTH)
            self.out.print(Markdown(text, hyperlinks=False), soft_wrap=False, width=width)
        else:
            sys.stdout.write(text)
            sys.stdout.flush()

    def json(self, value: dict[str, Any]) -> None:
        # Not through rich: a long line must stay one line, whatever the width.
        sys.stdout.write(json_text(value, indent=2) + "\n")
        sys.stdout.flush()

    def error(self, error: RefinerError) -> None:
        text = self._wrapped(f"Error: {error}")
        self.err.print(Text.assemble(("Error:", "bold red"), text.removeprefix("Error:")))

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Show one task; called with (done, total); total 0: unknown."""
        with self.report() as report:
            yield lambda done, total: report(Progress("count", printable(what), done, total or None))

    def report(self) -> contextlib.AbstractContextManager[Report]:
        """A ``report`` for the library that shows its tasks."""
        return show_progress(self.err, self.note, quiet=self.quiet)


terminal = Terminal()


def wrap_words(text: str, width: int | None, indent: str = "", hanging: str = "") -> str:
    """Lines of at most ``width`` characters; a longer word, such as a path, stays whole.

    Args:
        width: None: lines stay as they are.
        indent: what each line begins with.
        hanging: what each line but the first begins with, after the indent.
    """
    if width is None:
        return "\n".join(indent + line for line in text.split("\n"))
    wrapper = textwrap.TextWrapper(
        width, initial_indent=indent, subsequent_indent=indent + hanging, expand_tabs=False,
        replace_whitespace=False, break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(wrapper.fill(line) for line in text.split("\n"))


def new_table(title: str, *headings: str) -> Table:
    """An empty table without a box; all columns but the first are aligned to the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right")
    return table


def some_columns(table: Table, chosen: Sequence[int]) -> Table:
    """A table of some columns of one that :func:`new_table` made, without rows that say nothing in them."""
    columns = [table.columns[i] for i in chosen]
    part = new_table("", *(str(column.header) for column in columns))
    part.title = table.title
    for own, column in zip(part.columns, columns, strict=True):
        own.justify, own.overflow, own.no_wrap = column.justify, "fold", column.no_wrap
    for row, cells in zip(table.rows, zip(*(column.cells for column in columns), strict=True), strict=True):
        if any(map(str, cells[1:])):
            part.add_row(*cells, style=row.style)
    return part
