"""SIGINT and SIGTERM as requests to stop cleanly."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from refiner_cli.cli.console import INTERRUPTED, TERMINATED


@dataclass
class StopRequest:
    """Whether a stop was requested; call it to find out."""

    number: int | None = None

    def __call__(self) -> bool:
        return self.number is not None

    @property
    def exit_code(self) -> int:
        return TERMINATED if self.number == signal.SIGTERM else INTERRUPTED


@contextlib.contextmanager
def stop_on_signal(note: Callable[[str], None]) -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request. A second SIGINT ends the process at once."""
    request = StopRequest()

    def handle(number: int, _frame: FrameType | None) -> None:
        # From now on the system answers Ctrl-C itself, even while torch computes.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if request.number is None:
            request.number = number
            note("Stopping: this step is finished and saved. Ctrl-C again stops at once.")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
