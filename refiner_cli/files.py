"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Write to the path this gives; ``file`` appears, in place of any older one, only after success."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    part.touch(exist_ok=False)
    try:
        yield part
        sync(part)
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Fill the folder this gives; ``folder``, which must not exist, appears only after success."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                sync(file)
        part.chmod(0o755)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def sync(file: Path) -> None:
    """Make sure that a file's bytes are on the disk before its name promises them."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file whole."""
    with whole_file(file) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
