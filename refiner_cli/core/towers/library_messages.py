"""What the libraries say: kept off the terminal, or made one line of an error."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


def first_line(error: BaseException) -> str:
    """What an exception says, on one line."""
    return ((str(error).strip() or type(error).__name__).splitlines() or [""])[0].rstrip(".")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' own log lines and warnings off the terminal; errors come as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
