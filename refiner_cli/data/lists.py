"""Lists that users write: states, objects or pairs, one a line.

One reader for all of them. Blank lines and lines that begin with ``#`` do not count; a byte order
mark and the line endings of any system make no difference. A name that is known already (of a
model, of a dataset) is found under any usual spelling, and gets the known one; two spellings of one
name count once (see :func:`refiner_cli.data.labels.name_key`). A line that cannot be understood is
an error that names it and the way out.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from refiner_cli.data.labels import NameIndex, Pair, name_key, visible
from refiner_cli.errors import DatasetError
from refiner_cli.files import reason_of

NameRole = Literal["state", "object"]
NoteFn = Callable[[str], None]
MAX_WORDS = 6  # of one name; more are a sentence
_HEADERS = {
    "state": {"state", "states", "attribute", "attributes", "attr"},
    "object": {"object", "objects", "obj", "noun", "nouns"},
}
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(file: Path, what: str) -> str:
    """The text of a file that a user wrote, with ``\\n`` at the end of lines.

    Raises:
        DatasetError: it cannot be read, or is not UTF-8 (UTF-16 with its mark is read, too); names the line.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise DatasetError(
            f"The {what} {file} does not exist.", hint="Give a text file, one entry per line."
        ) from None
    except OSError as error:
        raise DatasetError(f"The {what} {file} cannot be read ({reason_of(error)}).") from None
    encoding = next((e for mark, e in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise DatasetError(
            f"The {what} {file} is not text in UTF-8: line {line} holds the byte 0x{byte:02x}.",
            hint="Save it as UTF-8 in your editor, or convert it: iconv -f LATIN1 -t UTF-8 FILE.",
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_names(
    file: Path, role: NameRole, known: Iterable[str] = (), log: NoteFn = lambda _: None
) -> tuple[str, ...]:
    """Read states or objects, each once, in the order of the list.

    Args:
        known: names whose spelling is taken over.
        log: called with a sentence that names what stands there twice.

    Raises:
        DatasetError: the list cannot be read, is empty, or a line is not one name.
    """
    index = NameIndex(known)
    unique = _Unique(file, log)
    for number, text in _lines(file, f"list of {role}s"):
        if not unique.found and name_key(text) in _HEADERS[role]:
            raise _bad_line(file, number, text, "looks like a header", "Remove it, or put a # before it.")
        if re.search(r"[,;\t]", text):
            raise _bad_line(file, number, text, "holds several names", f"Write one {role} per line.")
        name = visible(text)
        if not name_key(name) or len(name_key(name).split()) > MAX_WORDS:
            raise _bad_line(file, number, text, f"is not a {role}", f"Write one {role} per line.")
        unique.add((index.find(name) or name,), number)
    return tuple(name for (name,) in unique.result(f"list of {role}s"))


def read_pair_list(
    file: Path,
    known_states: Iterable[str] = (),
    known_objects: Iterable[str] = (),
    log: NoteFn = lambda _: None,
) -> tuple[Pair, ...]:
    """Read pairs, each once: ``state object``, with a tab or a comma between them where a name has two words.

    Without one, a line of three words and more is cut where both names are known. Arguments and
    errors as of :func:`read_names`.
    """
    states, objects = NameIndex(known_states), NameIndex(known_objects)
    unique = _Unique(file, log)
    for number, text in _lines(file, "pair list"):
        state, obj = _split_pair(file, number, text, states, objects)
        if not unique.found and name_key(state) in _HEADERS["state"] and name_key(obj) in _HEADERS["object"]:
            raise _bad_line(file, number, text, "looks like a header", "Remove it, or put a # before it.")
        unique.add((states.find(state) or state, objects.find(obj) or obj), number)
    return tuple((state, obj) for state, obj in unique.result("pair list"))


def _split_pair(file: Path, number: int, text: str, states: NameIndex, objects: NameIndex) -> Pair:
    parts = [visible(part) for part in re.split(r"[,;\t]", text)]
    if len(parts) == 1:
        words = parts[0].split()
        cuts = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
        both = [cut for cut in cuts if states.find(cut[0]) and objects.find(cut[1])]
        fitting = both if len(cuts) > 1 else cuts
        parts = list(fitting[0]) if len(fitting) == 1 else words
    if len(parts) != 2 or not all(map(name_key, parts)):
        raise _bad_line(
            file, number, text, "is not a pair",
            "Each line holds one state and one object, with a comma or a tab between names of two words.",
        )  # fmt: skip
    return parts[0], parts[1]


def _lines(file: Path, what: str) -> list[tuple[int, str]]:
    """Line numbers, from 1, and stripped lines, without blank ones and comments."""
    numbered = enumerate(read_text(file, what).split("\n"), 1)
    found = [(number, line.strip()) for number, line in numbered]
    return [(number, line) for number, line in found if visible(line) and not line.startswith("#")]


def _bad_line(file: Path, number: int, text: str, what: str, hint: str) -> DatasetError:
    shown = text if len(text) <= 80 else f"{text[:80]}..."
    return DatasetError(f"{file}, line {number}: {shown!r} {what}.", hint=hint)


class _Unique:
    """Entries of a list, each once under whatever spelling; the others are named."""

    def __init__(self, file: Path, log: NoteFn) -> None:
        self.file, self.log = file, log
        self.found: dict[tuple[str, ...], tuple[Sequence[str], int]] = {}  # keys -> names, line
        self.repeated: list[str] = []

    def add(self, names: Sequence[str], number: int) -> None:
        key = tuple(map(name_key, names))
        if key not in self.found:
            self.found[key] = names, number
            return
        first, line = self.found[key]
        spelling = "" if list(first) == list(names) else f", there {' '.join(first)!r}"
        self.repeated.append(f"{' '.join(names)!r} (line {number}; first in line {line}{spelling})")

    def result(self, what: str) -> list[Sequence[str]]:
        if not self.found:
            raise DatasetError(f"The {what} {self.file} is empty.")
        if self.repeated:
            more = f" and {len(self.repeated) - 5} more" if len(self.repeated) > 5 else ""
            self.log(f"{self.file}: listed again, counted once: {', '.join(self.repeated[:5])}{more}")
        return [names for names, _ in self.found.values()]
