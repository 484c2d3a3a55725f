"""The one type of a log: a function that receives a line of text. The core itself never prints."""

from __future__ import annotations

from collections.abc import Callable

LogFn = Callable[[str], None]
