"""A file of JSON lines that rows are appended to, one by one, and that is watched meanwhile."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from refiner_cli.errors import RefinerError
from refiner_cli.files import reason_of
from refiner_cli.inference.formats import ImageRow, json_line
from refiner_cli.inference.scan import row_name

CHECK_SECONDS = 1.0  # between two looks at the file


class Journal:
    """Appends rows; none waits in a buffer.

    Raises:
        RefinerError: the file cannot be written, or is no longer the one that was opened.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self.stream = file.open("ab")
        except OSError as error:
            raise RefinerError(
                f"The output {row_name(str(file))} cannot be written ({reason_of(error)})."
            ) from None
        self.size = os.fstat(self.stream.fileno()).st_size
        self.checked = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stream.close()

    def write(self, row: ImageRow) -> None:
        line = json_line(row.to_json()).encode()
        try:
            self.stream.write(line)
            self.stream.flush()
        except OSError as error:
            raise RefinerError(
                f"A row cannot be written to {row_name(str(self.file))} ({reason_of(error)}).",
                hint="Free some space; the same command resumes.",
            ) from None
        self.size += len(line)
        if time.monotonic() - self.checked >= CHECK_SECONDS:
            self.check()

    def check(self) -> None:
        """Raise RefinerError unless the file still has its name and holds every row written to it."""
        self.checked = time.monotonic()
        opened = os.fstat(self.stream.fileno())
        try:
            named = self.file.stat()
        except OSError:
            raise self.lost("was moved or deleted") from None
        if (named.st_dev, named.st_ino) != (opened.st_dev, opened.st_ino):
            raise self.lost("was replaced")
        if opened.st_size != self.size:
            raise self.lost("was changed")

    def lost(self, what: str) -> RefinerError:
        return RefinerError(
            f"The output {row_name(str(self.file))} {what} while rows were written to it.",
            hint="Leave it alone while refiner runs; the same command computes the missing rows.",
        )


def cut_torn_line(file: Path) -> None:
    """Cut a file of JSON lines after its last complete row."""
    if not file.exists():
        return
    good = 0
    with file.open("rb+") as stream:
        for line in stream:
            try:
                row = json.loads(line)
                complete = line.endswith(b"\n") and isinstance(row["path"], str) and bool(row["status"])
            except (ValueError, KeyError, TypeError, RecursionError):
                complete = False
            if not complete:
                break
            good += len(line)
        stream.truncate(good)
