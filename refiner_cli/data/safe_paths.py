"""Names from archives, metadata and inputs: which of them may become a path, and on which system."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

LONGEST_NAME = 255  # bytes of one part of a path, on most file systems
_USUAL_NAME = 240  # bytes; leaves room for a number
OUTPUT_MARKER = ".refiner-output"  # a file in a folder of images that refiner made

# Thumbnails, metadata and deleted files that NAS systems, macOS, Windows and Linux keep among photos.
_FOREIGN_FOLDERS = {"__macosx", "$recycle.bin", "system volume information", "lost+found", "#recycle"}
_FOREIGN_STARTS = (".", "@")  # hidden files, AppleDouble (._a.jpg); Synology's and QNAP's @eaDir, @Recycle
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
_WINDOWS_FORBIDDEN = re.compile(r'[<>:"|?*]')


def is_foreign(name: str, *, folder: bool) -> bool:
    """Whether a file or folder belongs to another program, and so is not a photo of the user's."""
    if folder:
        return name.startswith(_FOREIGN_STARTS) or name.casefold() in _FOREIGN_FOLDERS
    return name.startswith(".")


def relative(name: str) -> str:
    """The name as a path with forward slashes that stays inside the folder it is joined to.

    A backslash counts as a separator, because Windows would take it for one.
    Raises ValueError, with the reason as its message, for any other name.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in {"", "."}]
    if not parts:
        raise ValueError("an empty name")
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        raise ValueError("an absolute path")
    if ".." in parts:
        raise ValueError("a path that leaves its folder")
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise ValueError("a control character")
    return "/".join(parts)


def portable(name: str, *, windows: bool = os.name == "nt") -> str:
    """:func:`relative`, and refused where Windows cannot create such a file. Raises ValueError."""
    path = relative(name)
    for part in path.split("/") if windows else ():
        if _WINDOWS_DEVICES.fullmatch(part) or _WINDOWS_FORBIDDEN.search(part) or part.endswith((".", " ")):
            raise ValueError(f"{part!r} cannot be a file name on Windows")
    return path


def portable_name(name: str, *, hidden: bool = True) -> str:
    """A name for a file or folder that every system accepts, as close to the given one as possible.

    It has no separator, so it names nothing outside its folder. Bytes that are not UTF-8 become ``_xff``; a
    very long name is cut, and keeps its suffix.

    Args:
        hidden: whether scans may take it for another program's (:func:`is_foreign`).
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    text = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f]', "_", text).rstrip(". ") or "_"
    if _WINDOWS_DEVICES.fullmatch(text) or (not hidden and is_foreign(text, folder=True)):
        text = f"_{text}"
    if len(text.encode()) <= _USUAL_NAME:
        return text
    stem, dot, suffix = text.rpartition(".")
    ending = dot + suffix if stem and len(suffix) < 8 else ""
    start = text.encode()[: _USUAL_NAME - len(ending.encode())].decode("utf-8", "ignore")
    return start.rstrip(". ") + ending


def path_inside(folder: Path, name: str, suffix: str = "") -> Path:
    """A path below ``folder`` for what is made from the input called ``name``, whatever that is.

    An ordinary relative name is kept: ``a/b.jpg`` -> ``folder/a/b.jpg`` and ``suffix``. Of any other
    (absolute, with ``..``, with a part that is too long, not allowed on this system) the usable parts are
    kept and a digest is added, so that two names never share a path and none leaves the folder.
    """
    try:
        parts = portable(name).split("/")
        ordinary = "/".join(parts) == name
    except ValueError:
        parts, ordinary = [], False
    if ordinary and all(_fits(part) for part in (*parts, parts[-1] + suffix)):
        return folder.joinpath(*parts[:-1], parts[-1] + suffix)
    parts = [_clean(part) for part in re.split(r"[/\\]", name) if part not in {"", ".", ".."}] or ["_"]
    ending = f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}{suffix}"
    return folder.joinpath(*map(_shortened, parts[:-1]), _shortened(parts[-1], ending))


def _fits(part: str) -> bool:
    return len(os.fsencode(part)) <= LONGEST_NAME


def _clean(part: str) -> str:
    """A part of a path that every system takes."""
    part = re.sub(r'[\x00-\x1f\x7f<>:"|?*]', "_", part).rstrip(". ") or "_"
    return f"_{part}" if _WINDOWS_DEVICES.fullmatch(part) else part


def _shortened(part: str, ending: str = "") -> str:
    """``part`` and ``ending``; a part that is too long is cut, never its ending."""
    room = LONGEST_NAME - len(os.fsencode(ending))
    return os.fsencode(part)[:room].decode("utf-8", "ignore") + ending


def mark_output_folder(folder: Path) -> None:
    """Make a folder for images that are never to be read as input: every scan skips it (OUTPUT_MARKER).

    Raises ValueError for a folder that holds anything else already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / OUTPUT_MARKER
    if not marker.exists():
        if any(folder.iterdir()):
            raise ValueError("it holds other files")
        marker.write_text("Images made by refiner; its scans skip this folder.\n", "utf-8")
