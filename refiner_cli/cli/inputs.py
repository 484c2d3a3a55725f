"""The images that ``predict`` and ``index`` are given, and how both are stopped."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refiner_cli.cli.console import INTERRUPTED, terminal
from refiner_cli.errors import UsageError

if TYPE_CHECKING:
    from refiner_cli.inference.scan import ImageFile, PathFilter

STDIN = [Path("-")]
Include = Annotated[
    list[str] | None, typer.Option(help="Include only files matching this pattern, such as '*.jpg'.")
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Skip files and folders matching this pattern, such as 'raw/*'.")
]


def find_images(paths: list[Path], chosen: PathFilter) -> tuple[Iterator[ImageFile], Callable[[], int]]:
    """The images, and how many there are as soon as that is known. Raises UsageError if there is none."""
    from refiner_cli.inference.scan import count_in_background, list_files, read_list, row_name, scan

    if paths == STDIN:
        if sys.stdin is None:
            raise UsageError("The list of images is read from stdin, which is closed.")
        return list_files(read_list(sys.stdin.buffer), chosen), lambda: 0
    found = scan(paths, chosen)
    first = next(found, None)
    if first is None:
        raise UsageError(f"There is no image in {', '.join(row_name(str(path)) for path in paths)}.")
    return chain([first], found), count_in_background(scan(paths, chosen))


def name_places(paths: list[Path]) -> list[str]:
    """What an index notes as the origin of its images."""
    return [] if paths == STDIN else [str(path.resolve()) for path in paths]


@contextlib.contextmanager
def stop_with_saved_rows() -> Iterator[None]:
    """An interrupt loses no row, and a reader of the rows may stop reading them."""
    try:
        yield
    except KeyboardInterrupt:
        terminal.note("stopped; with an output file, the same command resumes here")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # Or Python would fail once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None
