"""Progress of one or several tasks at once: bars on a terminal, lines in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from refiner_cli.data.disk import format_size
from refiner_cli.data.progress import Notice, Progress, Report, silent

PAUSE = 2.0  # seconds between two lines of a task in a log
_COUNTED = {"verify", "link", "count"}  # stages whose unit is an item; of the others it is a byte
_VERBS = {"fetch": "fetching ", "check": "checking ", "unpack": "unpacking ", "verify": "verifying ",
          "link": "writing ", "count": ""}  # fmt: skip


def describe_progress(stage: str, done: float, total: float | None, rate: float | None) -> str:
    """``"1.2 GB of 2.0 GB, 10.1 MB/s, 1:19 left"``, leaving out what is unknown."""
    amount = (lambda number: f"{number:,.0f}") if stage in _COUNTED else format_size
    text = amount(done) if total is None else f"{amount(done)} of {amount(total)}"
    if rate:
        text += f", {rate:,.1f}/s" if stage in _COUNTED else f", {format_size(rate)}/s"
        if total is not None and total > done:
            seconds = round((total - done) / rate)
            hours, minutes = f"{seconds // 3600}:" if seconds >= 3600 else "", seconds // 60 % 60
            text += f", {hours}{minutes:0{2 if hours else 1}d}:{seconds % 60:02d} left"
    return text


@contextlib.contextmanager
def show_progress(console: Console, note: Callable[[str], None], *, quiet: bool) -> Iterator[Report]:
    """A ``report`` for the library that shows its events.

    Args:
        console: where bars are drawn, if it is a terminal.
        note: prints a line.
    """
    if quiet:
        yield silent
    elif console.is_terminal:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(24), _Amount())
        # Lines on the same terminal go above the bars; what is redirected to a file or pipe must stay there.
        shared = sys.stdout is not None and sys.stdout.isatty()
        with Bars(*columns, console=console, transient=True, redirect_stdout=shared) as bars:
            yield _Bars(note, bars)
    else:
        yield _Lines(note)


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        text = describe_progress(task.fields["stage"], task.completed, task.total, task.speed)
        return Text(f"{text}, {task.fields['detail']}" if task.fields["detail"] else text)


@dataclass
class _Bars:
    """One bar per task; bytes of earlier runs count as done, but not towards the rate."""

    note: Callable[[str], None]
    bars: Bars
    tasks: dict[tuple[str, str], TaskID] = field(default_factory=dict)

    def __call__(self, event: Progress | Notice) -> None:
        if isinstance(event, Notice):
            self.note(event.text)
            return
        key = (event.stage, event.name)
        if key not in self.tasks:
            title = _VERBS[event.stage] + event.name
            self.tasks[key] = self.bars.add_task(
                title, total=event.total, completed=event.done, stage=event.stage, detail=event.detail
            )
        self.bars.update(self.tasks[key], completed=event.done, total=event.total, detail=event.detail)
        if event.total and event.done >= event.total:  # done: others need the room
            self.bars.remove_task(self.tasks.pop(key))


@dataclass
class _Lines:
    """A line for every tenth of a task, but no more than one in two seconds until it is done."""

    note: Callable[[str], None]
    begun: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)
    tenths: dict[tuple[str, str], int] = field(default_factory=dict)
    shown: dict[tuple[str, str], float] = field(default_factory=dict)

    def __call__(self, event: Progress | Notice) -> None:
        if isinstance(event, Notice):
            self.note(event.text)
            return
        key = (event.stage, event.name)
        now = time.monotonic()
        start, before = self.begun.setdefault(key, (now, event.done))
        tenth = event.done * 10 // event.total if event.total else 0
        waited = now - self.shown.get(key, start) >= PAUSE or event.done == event.total
        if tenth > self.tenths.get(key, 0) and waited:
            self.tenths[key], self.shown[key] = tenth, now
            passed = now - start
            rate = (event.done - before) / passed if passed > 0 else None
            text = describe_progress(event.stage, event.done, event.total, rate)
            text += f", {event.detail}" if event.detail else ""
            self.note(f"{_VERBS[event.stage]}{event.name}: {text}")
