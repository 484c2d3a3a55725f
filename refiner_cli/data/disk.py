"""The disk: free space, locks among processes, and its errors in plain words."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from filelock import FileLock, Timeout

from refiner_cli.data.progress import Notice, Report, StoppedError
from refiner_cli.errors import FetchError
from refiner_cli.files import reason_of

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@contextmanager
def os_errors_as(doing: str) -> Iterator[None]:
    """Turn an OSError of the block into a FetchError that says what was being done."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise FetchError(
                f"The disk became full while {doing} ({reason_of(error)}).",
                hint="Free some space, or choose another place with --out, and run the command again; "
                "it resumes.",
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

    The lock file stays: removing it would let two processes hold two files of one name. A file system
    without locks is used without them, with a notice.

    Raises:
        StoppedError: ``stop`` was set while waiting.
        FetchError: the lock file cannot be written.
    """
    # Not thread-local and no singleton: two threads of one process exclude each other, too.
    lock = FileLock(file, thread_local=False)
    with os_errors_as(f"locking {file}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            report(Notice(f"Another process holds the lock on {what}; waiting."))
            try:
                lock.acquire(poll_interval=0.2, cancel_check=stop.is_set)
            except Timeout:
                raise StoppedError from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            report(Notice(f"{file.parent} does not support locks; do not download twice at the same time."))
    try:
        yield
    finally:
        lock.release()
