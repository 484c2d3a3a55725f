"""An output that survives whatever happens to the run, and resumes where it stopped.

::

    out.jsonl                     rows, appended and flushed as they come
    out.jsonl.run.json            what they were made with, and whether they are complete
    out.csv.rows-0001.jsonl       rows of an unfinished run (0001) for other formats; merged into the output
                                  at the end, then removed
    .out.jsonl.lock               held while a process writes; it stays, as removing it would let two in

A row counts once its line is complete; what a kill leaves of a line is cut off. Of two rows with one path
the later counts; merging leaves only that one.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from refiner_cli.errors import RefinerError, UsageError
from refiner_cli.files import atomic_file, reason_of, write_json
from refiner_cli.inference.columns import RowDict
from refiner_cli.inference.earlier_rows import EarlierRows
from refiner_cli.inference.formats import format_of
from refiner_cli.inference.journal import Journal, cut_torn_line
from refiner_cli.inference.scan import FileVersion, name_digest, row_name
from refiner_cli.inference.sources.noted import NotedPlaces

OUTPUT_SCHEMA = "refiner.predictions/1"
OTHER_OUTPUT = "Choose another name, or discard these rows with --overwrite."
PROMISE = (
    "The same command computes an image again if its size or modification time changed, or if its row is an "
    "error; rows of images that were deleted from the folder are dropped. All other rows stay as they are."
)
Header = dict[str, Any]  # what decides the rows; every key must be the same to resume
IsGone = Callable[[str], bool]  # of a path: whether its image no longer exists


@dataclass(frozen=True)
class RowCount:
    """How many rows an output has, how many of them are errors, and how many were dropped."""

    images: int
    errors: int
    dropped: int = 0


class Output:
    """The rows of one file.

    Args:
        file: where the result goes; its suffix names the format.
        top_k: guesses per row.
        wide: write all columns of a CSV file.
    """

    def __init__(self, file: Path, top_k: int, *, wide: bool = False) -> None:
        self.file, self.top_k, self.wide = file, top_k, wide
        self.format = format_of(file, wide=wide)
        self.run = 1
        self.sidecar = sidecar_of(file)
        self.lock = file.with_name(f".{file.name}.lock")

    @property
    def journal(self) -> Path:
        """Where rows are appended."""
        if self.format.suffix == ".jsonl" and not self.journals():
            return self.file
        return self.file.with_name(f"{self.file.name}.rows-{self.run:04d}.jsonl")

    def journals(self) -> list[Path]:
        """Rows that still have to be merged, oldest first."""
        return sorted(self.file.parent.glob(f"{glob_escape(self.file.name)}.rows-*.jsonl"))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from writing this output. Raises RefinerError if one does, or if nobody can."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.lock)
            lock.acquire(timeout=0)
        except Timeout:
            raise RefinerError(f"Another process is writing {self.shown}.") from None
        except NotImplementedError:  # a file system without locks
            yield
            return
        except OSError as error:
            raise RefinerError(f"The output {self.shown} cannot be written ({reason_of(error)}).") from None
        try:
            yield
        finally:
            lock.release()

    @property
    def shown(self) -> str:
        return row_name(str(self.file))

    def prepare(self, header: Header, *, overwrite: bool, folder: Path | None = None) -> Header:
        """Get ready to write, or to resume, and return the header that counts.

        Its ``batch`` is that of the first run, as the last bits of the scores depend on it.

        Args:
            folder: what the paths of the rows are relative to, if that is one folder; it may have moved.

        Raises:
            UsageError: the rows were made with something else, or by something else.
        """
        if overwrite:
            for old in (self.sidecar, self.file, *self.journals()):
                old.unlink(missing_ok=True)
        if self.sidecar.exists():
            header = self.accept(header, folder)
            self.run += 1
        elif self.journals():
            raise unknown_rows(self.file)
        else:
            require_own_rows(self.file)
        self.note(header, complete=False)
        for part in {self.file, *self.journals()}:
            if part.suffix.lower() == ".jsonl":
                cut_torn_line(part)
        return header

    def accept(self, header: Header, folder: Path | None = None) -> Header:
        """The header of the rows so far, if they fit to these. Raises UsageError."""
        try:
            found = json.loads(self.sidecar.read_text("utf-8"))
            old, self.run = found["header"], found.get("run", 1)
            if (
                found["schema"] != OUTPUT_SCHEMA
                or not isinstance(old, dict)
                or type(self.run) is not int
                or type(old["batch"]) is not int
                or not 1 <= old["batch"] <= 1 << 20
            ):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise UsageError(
                f"{row_name(str(self.sidecar))} is damaged or not of 'refiner predict', so nothing says how "
                f"{self.shown} was made.",
                hint=OTHER_OUTPUT,
            ) from None
        wanted = self.with_layout(header)
        for key in {**old, **wanted}:
            value = wanted.get(key)
            if key == "places" and folder and self.was_moved(old.get(key), folder):
                old = old | {key: value}
            elif key != "batch" and old.get(key) != value:
                raise UsageError(
                    f"The rows in {self.shown} were made with another {key.replace('_', ' ')} "
                    f"({old.get(key)}, now {value}).",
                    hint=OTHER_OUTPUT,
                )
        return old

    def was_moved(self, places: Any, folder: Path) -> bool:
        """Whether the one folder that the rows are of is gone, and ``folder`` holds the same images."""
        if not isinstance(places, list) or (place := NotedPlaces(map(str, places)).single) is None:
            return False
        if Path(place).exists():
            return False
        some = [row for row in islice(self.rows(), 100) if row["status"] == "ok"]
        same = sum(FileVersion.of(folder / row["path"]).size == row.get("size", -1) for row in some)
        return bool(some) and 2 * same >= len(some)

    def with_layout(self, header: Header) -> Header:
        """A header that says which columns a file has, where there is a choice."""
        return header | {"layout": self.format.layout} if self.format.layout else header

    def note(self, header: Header, *, complete: bool, count: RowCount | None = None) -> None:
        numbers = {"images": count.images, "errors": count.errors} if count else {}
        write_json(
            self.sidecar,
            {"schema": OUTPUT_SCHEMA, "complete": complete, **numbers, "run": self.run, "resume": PROMISE,
             "header": self.with_layout(header)},
        )  # fmt: skip

    def earlier(self) -> EarlierRows:
        """What there is already."""
        found = EarlierRows()
        for row in self.rows():
            found.add(row)
        return found

    def rows(self) -> Iterator[RowDict]:
        """Every row, oldest first; some paths may have several. Raises UsageError for a damaged file."""
        files = [self.file] if self.file.exists() else []
        for file in chain(files, self.journals()):
            try:
                for row in format_of(file).read(file):
                    name_digest(row["path"])
                    yield row
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
                raise UsageError(f"{row_name(str(file))} is damaged ({error}).", hint=OTHER_OUTPUT) from None

    @contextlib.contextmanager
    def writing(self) -> Iterator[Journal]:
        """Raises RefinerError if the file is moved, deleted or changed by others meanwhile."""
        with Journal(self.journal) as journal:
            yield journal
            journal.check()

    def finish(
        self,
        header: Header,
        found: Set[bytes] = frozenset(),
        earlier: EarlierRows | None = None,
        is_gone: IsGone | None = None,
    ) -> RowCount:
        """Merge what has to be merged, and note that the output is complete.

        Args:
            found: the digests of the names of all images of this run.
            earlier: the rows before this run.
            is_gone: asked about the rows of other images; those that are gone are dropped. None: all stay.

        Raises:
            RefinerError: rows that were written, now or earlier, are missing.
        """
        seen: set[bytes] = set()
        last: dict[bytes, int] = {}  # of paths with several rows, which one counts
        dropped: set[bytes] = set()
        count, inputs = RowCount(0, 0), False

        def kept() -> Iterator[RowDict]:
            nonlocal count
            made = errors = 0
            for i, row in enumerate(self.rows()):
                key = name_digest(row["path"])
                if key not in dropped and last.get(key, i) == i:
                    made, errors = made + 1, errors + (row["status"] != "ok")
                    yield row
            count = RowCount(made, errors, len(dropped))

        for i, row in enumerate(self.rows()):
            key = name_digest(row["path"])
            if key in seen:
                last[key] = i
            elif is_gone and key not in found and is_gone(row["path"]):
                dropped.add(key)
            seen.add(key)
            inputs = inputs or "inputs" in row
        required = chain(found, earlier.versions if earlier else ())
        if missing := {key for key in required if key not in seen}:
            raise RefinerError(
                f"{len(missing)} rows that were written to {self.shown} are no longer in it.",
                hint="Something else changed the file; the same command computes them again.",
            )
        if self.journals() or last or dropped or not self.file.exists():
            with atomic_file(self.file) as part:
                layout = format_of(self.file, wide=self.wide, inputs=inputs)
                layout.write(part, kept(), self.top_k)
            for journal in self.journals():
                journal.unlink()
        else:
            for row in kept():
                del row
        self.note(header, complete=True, count=count)
        return count


def sidecar_of(file: Path) -> Path:
    """The file beside an output that says how it was made."""
    return file.with_name(file.name + ".run.json")


def read_run_record(file: Path) -> dict[str, Any]:
    """What the file beside an output says; empty where it is missing or damaged."""
    try:
        found = json.loads(sidecar_of(file).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def require_own_rows(file: Path) -> None:
    """Raise UsageError for a file that is not known to be an output of this program."""
    if file.exists() and not sidecar_of(file).exists():
        raise unknown_rows(file)


def unknown_rows(file: Path) -> UsageError:
    return UsageError(
        f"The output {row_name(str(file))} exists, and nothing says how it was made.", hint=OTHER_OUTPUT
    )


def glob_escape(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
