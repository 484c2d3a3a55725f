"""The terminal: stdout is data, stderr is everything else.

With ``--json`` a command prints one object with a "schema" field to stdout and nothing else there.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from refiner_cli.errors import RefinerError

PARTLY_DONE = 5
INTERRUPTED = 130
TERMINATED = 143

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]


class Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.1f}/s" if task.speed else "", style="progress.data.speed")


@dataclass
class Terminal:
    """Both streams and the global options. The one object that prints."""

    debug: bool = False
    quiet: bool = False
    out: Console = field(default_factory=lambda: Console(soft_wrap=True, highlight=False))
    err: Console = field(default_factory=lambda: Console(stderr=True, soft_wrap=True, highlight=False))

    def note(self, text: str) -> None:
        """A line about what is going on."""
        if not self.quiet:
            self.err.print(text, markup=False)

    def data(self, text: str) -> None:
        """A line of the result."""
        self.out.print(text, markup=False)

    def table(self, table: Table) -> None:
        # A number is never cut off: a table that is wider than the terminal wraps instead.
        table.width = Measurement.get(self.out, self.out.options.update(max_width=1000), table).maximum
        self.out.print(table)

    def json(self, value: dict[str, Any]) -> None:
        # Not through rich: a long line must stay one line, whatever the width.
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def error(self, error: RefinerError) -> None:
        self.err.print(f"[bold red]Error:[/] {escape(str(error))}")

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """A bar on a terminal, a line every tenth in a log; called with (done, total), 0 if not known."""
        if self.quiet:
            yield lambda *_: None
        elif self.err.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                Rate(),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self.err, transient=True) as bar:
                task = bar.add_task(what, total=None)
                yield lambda done, total: bar.update(task, completed=done, total=total or None)
        else:
            tenth, began = 0, time.monotonic()

            def line(done: int, total: int) -> None:
                nonlocal tenth
                if total and done * 10 // total > tenth:
                    tenth = done * 10 // total
                    spent = time.monotonic() - began
                    left = dt.timedelta(seconds=round(spent * (total - done) / done))
                    self.note(f"{what}: {done} of {total}, {done / max(spent, 1e-9):.1f}/s, {left} left")

            yield line


terminal = Terminal()


def new_table(title: str, *headings: str) -> Table:
    """An empty table in the house's look: numbers to the right, no box."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right")
    return table
