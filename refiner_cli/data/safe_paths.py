"""Names found inside archives and metadata: which of them may become a path, and on which system."""

from __future__ import annotations

import os
import re

# https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
_WINDOWS_FORBIDDEN = re.compile(r'[<>:"|?*]')


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
