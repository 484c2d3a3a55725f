"""Events that a long task reports while it runs: its progress, and notices.

Functions that take a ``report`` call it with one event at a time, possibly from another thread.
They do not know about terminals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["fetch", "check", "unpack", "verify", "link", "count"]


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` units of one named task; the total is None if it is unknown.

    The unit is bytes for ``fetch``, ``check`` (hashing) and ``unpack``, images for ``verify`` and ``link``,
    anything for ``count``.
    """

    stage: Stage
    name: str
    done: int
    total: int | None
    detail: str = ""  # what to say besides, such as "loss 2.31"


@dataclass(frozen=True)
class Notice:
    """One sentence worth showing, for example about a mirror that failed."""

    text: str


class StoppedError(Exception):
    """The caller stopped a task; what it has done so far is kept."""


Report = Callable[[Progress | Notice], None]


def silent(event: Progress | Notice) -> None:
    """A report that discards every event."""
