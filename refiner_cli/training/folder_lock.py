"""One process at a time in a run directory, and what killed processes leave there."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from refiner_cli.errors import UsageError

LOCK = ".lock"
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # as files.temporary_name makes them
# What a start that failed or was killed may leave; it does not stand in the way of the next one.
STARTED = re.compile(r"environment.*\.json|tokens|init|labels\.jsonl|checkpoints|\.lock")


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process. The system frees it when the process ends, however it ends.

    Raises UsageError while another process holds it. Where the file system has no locks, nothing is held.
    """
    lock = FileLock(folder / LOCK, thread_local=False)
    held = True
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"Another process is training in {folder}.", hint="Wait for it, or use another --out."
        ) from None
    except (NotImplementedError, OSError):
        held = False
    try:
        yield
    finally:
        if held:
            lock.release()


def is_remains(path: Path) -> bool:
    """Whether a file is what a failed start may leave in a run directory."""
    if TEMPORARY.fullmatch(path.name):
        return True
    if path.name == "checkpoints":
        return path.is_dir() and all(TEMPORARY.fullmatch(part.name) for part in path.iterdir())
    return bool(STARTED.fullmatch(path.name))


@contextlib.contextmanager
def new_folder(folder: Path, remains: Callable[[Path], bool] = is_remains) -> Iterator[None]:
    """Claim a folder for something new and fill it in this block; of several processes, one wins.

    Args:
        remains: tells which files a start that failed may have left.

    Raises UsageError if the folder holds anything else.
    """
    require_unused(folder, remains)
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        require_unused(folder, remains)
        remove_temporary(folder)
        yield


def require_unused(folder: Path, remains: Callable[[Path], bool] = is_remains) -> None:
    """Raise UsageError if something lies there already."""
    if folder.is_dir() and all(map(remains, folder.iterdir())):
        return
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} exists already.", hint="Use another --out, or --resume to continue it.")


def remove_temporary(folder: Path) -> None:
    """Remove what processes that were killed while writing left in a folder that nobody else writes to."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
