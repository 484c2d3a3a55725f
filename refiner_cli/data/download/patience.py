"""When a server is asked again, and when a slow transfer is given up."""

from __future__ import annotations

from dataclasses import dataclass

RETRIED_STATUSES = {408, 425, 429, 500, 502, 503, 504}  # worth another attempt at the same address


@dataclass(frozen=True)
class Pace:
    """The slowest transfer that is not given up: ``count`` bytes in ``seconds``."""

    count: int = 16 << 10
    seconds: float = 60.0
