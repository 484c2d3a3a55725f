"""The disk: room, locks, and errors in plain words."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from filelock import FileLock, Timeout

from refiner_cli.data.progress import Notice, Report, StoppedError
from refiner_cli.errors import FetchError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def flush(folder: Path) -> None:
    """Make sure that what was written below a folder survives a power cut, as far as the system can."""
    if hasattr(os, "sync"):  # one call for 60,000 images; fsync on each would take minutes
        os.sync()
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def os_errors_as(doing: str) -> Iterator[None]:
    """Turn an OSError of the block into a FetchError that says what was being done."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise FetchError(
                f"The disk became full while {doing} ({error.strerror}).",
                hint="Free some space, or choose another place with --out, and run the command again: "
                "what is there already is kept.",
            ) from error
        raise FetchError(f"{doing[:1].upper()}{doing[1:]} failed: {error}.") from error


def require_free_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise FetchError unless the file system of ``folder`` has ``needed`` bytes left."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FetchError(
            f"{purpose} needs {format_size(needed)}, but {folder} has only {format_size(free)} left.",
            hint="Free some space, or choose another place with --out.",
        )


def format_size(count: float) -> str:
    """A number of bytes as people read it: ``1.5 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


@contextmanager
def locked(file: Path, what: str, report: Report, stop: Event) -> Iterator[None]:
    """Hold a lock among processes. The system frees it when its holder dies, however it dies.

    Raises StoppedError when ``stop`` is set while waiting.
    """
    with os_errors_as(f"locking {file}"):
        file.parent.mkdir(parents=True, exist_ok=True)
    # Not thread-local and no singleton: two threads of one process exclude each other, too.
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(Notice(f"Another process is at work on {what}; waiting for it."))
        while True:
            if stop.wait(0.2):
                raise StoppedError from None
            try:
                lock.acquire(timeout=0)
                break
            except Timeout:
                continue
    try:
        yield
    finally:
        lock.release()
