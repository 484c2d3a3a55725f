"""What the studies' command lines share: numbers that are counts, and errors as one sentence."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator

from refiner_cli.errors import RefinerError


def positive(text: str) -> int:
    """A count of at least one, for ``type`` of an argument."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


@contextlib.contextmanager
def exit_with_sentence() -> Iterator[None]:
    """Turn an error that a user can cause into a sentence and its exit code."""
    try:
        yield
    except RefinerError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(error.exit_code)
