"""The images that ``predict`` and ``index`` are given, and how both are stopped."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refiner_cli.cli.console import INTERRUPTED, terminal
from refiner_cli.errors import UsageError

if TYPE_CHECKING:
    from refiner_cli.inference.scan import ImageFile, PathFilter
    from refiner_cli.inference.sources.boxes import Boxes
    from refiner_cli.inference.sources.places import Places

STDIN = ["-"]
PATHS_HELP = (
    "Folders, images, archives (zip, tar), shards (photos-{0000..0099}.tar), tables (CSV, JSON lines, "
    "Parquet), addresses (https://, s3://, gs://, hf://), or - for a list on stdin"
)
NullSeparated = Annotated[
    bool, typer.Option("-0", "--null", help="The list on stdin is separated by NUL characters, not lines.")
]
Include = Annotated[
    list[str] | None, typer.Option(help="Include only files matching this pattern, such as '*.jpg'.")
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Skip files and folders matching this pattern, such as 'raw/*'.")
]


def open_places(
    paths: list[str], chosen: PathFilter, *, null: bool = False, boxes: Boxes | None = None
) -> Places:
    """The sources that the PATHs look like. Raises UsageError or FetchError."""
    from refiner_cli.inference.sources.places import find_places

    stream = sys.stdin.buffer if sys.stdin is not None else None
    return replace(find_places(paths, chosen, stream, null=null), boxes=boxes)


def open_boxes(file: Path | None, margin: float, confidence: float) -> Boxes | None:
    """The boxes of a detector, if there are any to go by. Raises DatasetError or UsageError."""
    from refiner_cli.inference.sources.boxes import read_boxes

    if file is None:
        return None
    found = read_boxes(file, margin=margin, confidence=confidence)
    if found.left_out:
        terminal.note(f"{found.left_out:,} boxes with a confidence below {confidence:g} are left out")
    return found


def find_images(places: Places, paths: list[str]) -> tuple[Iterator[ImageFile], Callable[[], int]]:
    """The images, and how many there are as soon as that is known. Raises UsageError if there is none."""
    from refiner_cli.inference.scan import row_name

    found = places.images()
    first = next(found, None)
    if first is None:
        where = "the list on stdin" if paths == STDIN else ", ".join(map(row_name, paths))
        raise UsageError(f"There is no image in {where}.")
    return chain([first], found), (lambda: 0) if paths == STDIN else places.count()


def local_paths(paths: list[str]) -> list[Path]:
    """The inputs that are files and folders of this machine."""
    from refiner_cli.inference.sources.source import is_address

    return [Path(path) for path in paths if path != STDIN[0] and not is_address(path)]


def name_places(paths: list[str], places: Places) -> list[str]:
    """What an index notes as the origin of its images, wherever a later command is started."""
    from refiner_cli.inference.sources.noted import note_places
    from refiner_cli.inference.sources.source import is_address

    given = [] if paths == STDIN else paths
    called = [path if is_address(path) else Path(path).as_posix() for path in given]
    return note_places(zip(called, given, strict=True), single=places.single is not None)


@contextlib.contextmanager
def stop_with_saved_rows(out: Path | None) -> Iterator[None]:
    """An interrupt loses no row of ``out``, and a reader of rows on stdout may stop reading them."""
    try:
        yield
    except KeyboardInterrupt:
        resumes = f"; {out} keeps what is done, and the same command goes on from here" if out else ""
        terminal.note(f"stopped{resumes}")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # Or Python would fail once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None
