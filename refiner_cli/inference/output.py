"""An output that survives whatever happens to the run, and goes on where it stopped.

::

    out.jsonl               rows, appended and flushed as they come
    out.jsonl.run.json      what they were made with, and whether they are complete
    out.csv.rows-0.jsonl    rows of a run that is not complete, for other kinds of output and for
                            each of several processes; merged into the output at the end, then gone

A row counts once its line is whole. What a kill leaves behind of a line is cut off.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from refiner_cli.errors import RefinerError, UsageError
from refiner_cli.files import atomic_file, write_json
from refiner_cli.inference.formats import JsonLines, Value, format_of, read_values, write_values
from refiner_cli.inference.scan import name_digest

FORMAT = "refiner.predictions/1"
Header = dict[str, Any]  # what decides the rows; every key must be the same to go on


@dataclass(frozen=True)
class Count:
    """How many rows an output has, and how many of them are errors."""

    images: int
    errors: int


class Output:
    """The rows of one file.

    Args:
        file: where the result goes; its ending says what kind it is.
        top_k: guesses in a row.
        rank: which of the processes this is, of ``world``.
    """

    def __init__(self, file: Path, top_k: int, rank: int = 0, world: int = 1) -> None:
        self.file, self.top_k, self.kind = file, top_k, format_of(file)
        self.sidecar = file.with_name(file.name + ".run.json")
        self.direct = self.kind == ".jsonl" and world == 1
        self.journal = file if self.direct else file.with_name(f"{file.name}.rows-{rank}.jsonl")

    def journals(self) -> list[Path]:
        """Rows that still have to be merged."""
        return sorted(self.file.parent.glob(f"{glob_escape(self.file.name)}.rows-*.jsonl"))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes this output meanwhile. Raises RefinerError if somebody does."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.file.with_name(f".{self.file.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RefinerError(f"Another process is writing {self.file}.") from None
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def prepare(self, header: Header, *, overwrite: bool) -> Header:
        """Get ready to write, or to go on, and return the header that counts.

        Its ``batch`` is that of the first run, as the last bits of the scores depend on it.

        Raises:
            UsageError: what is there was made with something else, or by something else.
        """
        if overwrite:
            for old in (self.sidecar, self.file, *self.journals()):
                old.unlink(missing_ok=True)
        if self.sidecar.exists():
            header = self.accepted(header)
        elif self.file.exists() or self.journals():
            raise UsageError(
                f"The output {self.file} exists already, and nothing says how it was made.",
                hint="Use another name or --overwrite.",
            )
        self.note(header, complete=False)
        for part in {self.journal, *self.journals()}:
            repair(part)
        return header

    def accepted(self, header: Header) -> Header:
        try:
            found = json.loads(self.sidecar.read_text("utf-8"))
            old = found["header"]
            if found["schema"] != FORMAT or not isinstance(old, dict):
                raise KeyError("schema")
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"{self.sidecar} is damaged, so nothing says how {self.file} was made.",
                hint="Use another name or --overwrite.",
            ) from None
        for key, value in header.items():
            if key != "batch" and old.get(key) != value:
                raise UsageError(
                    f"The rows in {self.file} were made with another {key.replace('_', ' ')} "
                    f"({old.get(key)}, now {value}).",
                    hint="Use another name or --overwrite.",
                )
        return old

    def note(self, header: Header, *, complete: bool, count: Count | None = None) -> None:
        numbers = {"images": count.images, "errors": count.errors} if count else {}
        write_json(self.sidecar, {"schema": FORMAT, "complete": complete, **numbers, "header": header})

    def done(self) -> set[bytes]:
        """The digests of all names that have a row."""
        return {name_digest(value["path"]) for value in self.rows()}

    def rows(self) -> Iterator[Value]:
        """Every row there is, wherever; a merge that was interrupted may have left some twice."""
        files = [self.file] if self.file.exists() else []
        return chain.from_iterable(read_values(file) for file in files + self.journals())

    @contextlib.contextmanager
    def writing(self) -> Iterator[JsonLines]:
        with self.journal.open("a", encoding="utf-8", newline="") as stream:
            yield JsonLines(stream)

    def finish(self, header: Header) -> Count:
        """Merge what has to be merged and say that the output is complete."""
        if self.journals() or not self.file.exists():
            with atomic_file(self.file) as part:
                write_values(part, self.kind, self.once(), self.top_k)
            for journal in self.journals():
                journal.unlink()
        images = errors = 0
        for value in read_values(self.file):
            images += 1
            errors += value["status"] != "ok"
        count = Count(images, errors)
        self.note(header, complete=True, count=count)
        return count

    def once(self) -> Iterator[Value]:
        names: set[bytes] = set()
        for value in self.rows():
            name = name_digest(value["path"])
            if name not in names:
                names.add(name)
                yield value


def glob_escape(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def repair(file: Path) -> None:
    """Cut a file of JSON lines after its last whole row."""
    if file.suffix.lower() != ".jsonl" or not file.exists():
        return
    good = 0
    with file.open("rb+") as stream:
        for line in stream:
            try:
                whole = line.endswith(b"\n") and isinstance(json.loads(line)["path"], str)
            except (ValueError, KeyError, TypeError):
                whole = False
            if not whole:
                break
            good += len(line)
        stream.truncate(good)
