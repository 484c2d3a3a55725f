"""Which units of work a process takes: ``--part i/n``, or what Slurm or torchrun say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from refiner_cli.errors import UsageError


@dataclass(frozen=True)
class Share:
    """Every ``count``-th unit, from ``index`` on; all of them by default."""

    index: int = 0
    count: int = 1
    reason: str = ""

    def units(self, total: int, start: int = 0) -> Iterator[int]:
        """The numbers of its units, each once, beginning near ``start``."""
        mine = range(self.index, total, self.count)
        first = start % len(mine) if mine else 0
        yield from mine[first:]
        yield from mine[:first]


def parse_share(text: str) -> Share:
    """``"2/8"``: the second of eight parts. Raises UsageError."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(
            f"--part {text} is not a part such as 2/8.", hint="Parts are numbered from 1/8 to 8/8."
        )
    return Share(int(found[1]) - 1, int(found[2]), "requested")


def launched_share(environment: Mapping[str, str]) -> Share:
    """The part of a task of a Slurm array, or of a process that torchrun started; else everything.

    Raises UsageError for numbers that do not fit together.
    """

    def number(name: str, default: int | None = None) -> int:
        text = environment.get(name, "").strip()
        if not text and default is not None:
            return default
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise UsageError(
                f"{name} is {text!r}, which is not a number.", hint="Give the part with --part i/n."
            )
        return int(text)

    if environment.get("SLURM_ARRAY_TASK_ID", "").strip():
        task, first = number("SLURM_ARRAY_TASK_ID"), number("SLURM_ARRAY_TASK_MIN", 0)
        last, step = number("SLURM_ARRAY_TASK_MAX", task), max(1, number("SLURM_ARRAY_TASK_STEP", 1))
        count = number("SLURM_ARRAY_TASK_COUNT", (last - first) // step + 1)
        return checked_share((task - first) // step, count, f"SLURM_ARRAY_TASK_ID={task}")
    if environment.get("WORLD_SIZE", "").strip() not in {"", "1"}:
        rank, world = number("RANK"), number("WORLD_SIZE")
        return checked_share(rank, world, f"RANK={rank}")
    return Share()


def checked_share(index: int, count: int, reason: str) -> Share:
    if not 0 <= index < count:
        raise UsageError(
            f"{reason} is not one of {count} tasks.", hint="Give the part yourself, with --part i/n."
        )
    return Share(index, count, reason)
