"""Atomic writes: a file or folder is either complete or absent, and survives a power cut. And checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_MAX_NAME_BYTES = 200  # most file systems allow 255, and a temporary name adds 14
_NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EROFS}
_SYNC_THREADS = 16  # file systems commit parallel fsyncs together: a third of the time of one thread


@contextlib.contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """Yield a path to write to; ``file`` appears, replacing an older one, only after success.

    The file gets the permissions of any new file (the umask decides).
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = temporary_name(file)
    part.touch(exist_ok=False)
    try:
        yield part
        move_into_place(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder to fill; ``folder``, which must not exist, appears only after success."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = temporary_name(folder)
    part.mkdir()
    try:
        yield part
        move_into_place(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def reason_of(error: BaseException) -> str:
    """Why something cannot be read or written, as words in the brackets of a sentence."""
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    said = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(said).splitlines()[0][:300]


def temporary_name(target: Path) -> Path:
    """A hidden, unused name beside ``target``, ``.NAME.12345678.tmp``; a long NAME is cut short."""
    fits = len(os.fsencode(target.name)) <= _MAX_NAME_BYTES
    name = target.name if fits else target.name[: _MAX_NAME_BYTES // 4]  # a character has up to 4 bytes
    return target.with_name(f".{name}.{secrets.token_hex(4)}.tmp")


def move_into_place(part: Path, target: Path) -> None:
    """Rename a complete file or folder to ``target`` once its bytes are on the disk.

    Raises OSError if the disk is full, fails, or ``target`` is a folder that is not empty.
    """
    if part.is_dir():
        files = [file for file in part.rglob("*") if file.is_file() and not file.is_symlink()]
        with ThreadPoolExecutor(_SYNC_THREADS) as pool:
            list(pool.map(_sync, files))
    else:
        _sync(part)
    part.replace(target)
    with contextlib.suppress(OSError):  # the rename itself; not every system can sync a folder
        _sync(target.parent)


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with atomic_file(file) as part:
        # A file name that is not UTF-8 holds lone surrogates; as ``\\udcff`` they are valid JSON.
        part.write_bytes(text.encode("utf-8", "backslashreplace"))


def sha256(file: Path) -> str:
    """Hex digest of a regular file. Raises OSError for anything else, which could block."""
    if not file.is_file():
        raise OSError(0, "not a regular file")
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Flush a file's bytes to the disk, where the file system can do that."""
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FSYNC:  # a full or failing disk must not pass
            raise
    finally:
        os.close(handle)
