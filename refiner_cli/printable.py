"""Text that is safe to show: nothing in it acts on a terminal or an editor, and it can be encoded.

File names and labels may hold anything: terminal escape sequences, marks that reverse the direction of
writing, bytes that are not UTF-8 (lone surrogates in Python).
"""

from __future__ import annotations

import json
import re
import shlex
import unicodedata
from pathlib import Path
from typing import Any

# Active characters beyond those below U+0020, as the inside of a regular expression's set.
ACTIVE = "\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_NOT_IN_JSON = re.compile(f"[{ACTIVE}]")  # JSON always escapes those below U+0020
_UNSAFE_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_SAFE = "\n\t\u200c\u200d"  # the joiners of Persian, of Indian scripts and of emoji


def printable(text: str) -> str:
    r"""``text`` with every active character as an escape such as ``\x1b``."""
    return "".join(
        c if c in _SAFE or unicodedata.category(c) not in _UNSAFE_CATEGORIES else ascii(c)[1:-1] for c in text
    )


def as_argument(word: object) -> str:
    """A word of a command; a path that begins with a dash must not be taken for an option."""
    return f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)


def quoted(path: object) -> str:
    """A path as a word of a command that can be copied into a shell."""
    return shlex.quote(as_argument(path))


def json_text(value: Any, *, indent: int | None = None) -> str:
    """``value`` as JSON, readable, with active characters escaped; it parses to the same value."""
    return escape_as_json(json.dumps(value, indent=indent, ensure_ascii=False), _NOT_IN_JSON)


def escape_as_json(text: str, characters: re.Pattern[str]) -> str:
    r"""``text`` with the characters that a pattern matches as ``\uXXXX``."""
    return characters.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
