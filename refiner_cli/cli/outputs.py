"""Checks of output files before the work begins: no result is lost because it cannot be written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from refiner_cli.errors import UsageError
from refiner_cli.files import reason_of

HTML_SUFFIXES = (".html", ".htm")


@dataclass(frozen=True)
class OutputFile:
    """A file that an option names; None: not requested."""

    option: str
    file: Path | None
    suffixes: tuple[str, ...] = ()  # allowed endings; none: any


def check_outputs(outputs: Sequence[OutputFile], inputs: Iterable[Path] = ()) -> None:
    """Check every requested output, before anything is computed.

    Args:
        inputs: files and folders that are read, and must not be overwritten.

    Raises:
        UsageError: a wrong ending, a folder or another thing that is not a file, a folder that cannot be
            written to, or a file that is named twice.
    """
    taken = {path.resolve(): "an input" for path in inputs}
    for output in outputs:
        if output.file is None:
            continue
        check_output_file(output.option, output.file, output.suffixes)
        key = output.file.resolve()
        if key in taken:
            raise UsageError(
                f"{output.option} {output.file} is {taken[key]} already.", hint="Choose another file."
            )
        taken[key] = f"the file of {output.option}"


def check_output_file(option: str, file: Path, suffixes: tuple[str, ...] = ()) -> None:
    """Raise UsageError unless ``file`` can be created or replaced; missing folders are no obstacle."""
    if suffixes and file.suffix.lower() not in suffixes:
        raise UsageError(f"{option} {file} does not end in {' or '.join(suffixes)}.")
    try:
        if file.is_dir():
            raise UsageError(f"{option} {file} is a folder.", hint="Name a file.")
        if file.exists() and not file.is_file():
            raise UsageError(f"{option} {file} is not a regular file.", hint="Choose another file.")
        file.lstat()  # tells a name that is too long from one that is free
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise _cannot_write(option, file, error) from None
    try:
        probe_folder(file.parent)
    except (OSError, ValueError) as error:
        raise _cannot_write(option, file, error) from None


def check_output_folder(option: str, folder: Path) -> None:
    """Raise UsageError unless files can be created in ``folder``, which need not exist yet."""
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{option} {folder} is not a folder.", hint="Choose another folder.")
        probe_folder(folder)
    except (OSError, ValueError) as error:
        raise _cannot_write(option, folder, error) from None


def check_new_folder(option: str, folder: Path) -> None:
    """Raise UsageError unless ``folder`` can be created; an empty one may exist."""
    try:
        taken = folder.is_symlink() or (folder.exists() and not folder.is_dir())
        if taken or (folder.is_dir() and any(folder.iterdir())):
            raise UsageError(f"{option} {folder} exists already.", hint="Choose another folder.")
    except (OSError, ValueError) as error:
        raise _cannot_write(option, folder, error) from None
    check_output_folder(option, folder)


def probe_folder(folder: Path) -> None:
    """Create and remove an unnamed file in a folder, or in the nearest one above it that exists.

    Permissions alone do not tell: the file system may be read-only or full. Raises OSError.
    """
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"\0")


def _cannot_write(option: str, file: Path, error: OSError | ValueError) -> UsageError:
    return UsageError(
        f"{option} {file} cannot be written ({reason_of(error)}).", hint="Choose another place."
    )
