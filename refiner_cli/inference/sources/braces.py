"""Brace patterns of WebDataset: ``photos-{0000..0999}.tar`` names a thousand shards, ``{a,b}.tar`` two."""

from __future__ import annotations

import re

from refiner_cli.errors import UsageError

MAX_EXPANDED = 10_000_000  # places
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,12})\.\.(\d{1,12})")


def expand_braces(text: str) -> list[str]:
    """Every place that a pattern names, in order; text without a pattern names itself.

    Raises UsageError for a range that runs backwards, or that names too many.
    """
    found = next((one for one in _BRACES.finditer(text) if choices(one[1]) is not None), None)
    if found is None:
        return [text]
    before, after = text[: found.start()], expand_braces(text[found.end() :])
    words = choices(found[1]) or []
    if len(words) * len(after) > MAX_EXPANDED:
        raise UsageError(f"{text} names more than {MAX_EXPANDED:,} places.")
    return [f"{before}{word}{rest}" for word in words for rest in after]


def choices(inside: str) -> list[str] | None:
    """What stands between two braces; None if that is no pattern."""
    if span := _RANGE.fullmatch(inside):
        first, last = int(span[1]), int(span[2])
        if last < first:
            raise UsageError(f"The range {{{inside}}} runs backwards.")
        if last - first >= MAX_EXPANDED:
            raise UsageError(f"The range {{{inside}}} names more than {MAX_EXPANDED:,} places.")
        width = len(span[1])
        return [f"{number:0{width}d}" for number in range(first, last + 1)]
    return inside.split(",") if "," in inside else None
