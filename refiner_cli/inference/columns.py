"""Rows without nesting: the columns of Parquet and of both layouts of CSV.

``wide``: everything, as ``predictions.1.state``, ``states.2.probability`` and so on. ``short``: the columns
that a person reads, for at most three predictions, ``state``, ``object``, ``probability``, ``seen``,
``state_2`` and so on; scores and the lists of states and objects are left out.
"""

from __future__ import annotations

import json
import re
from typing import Any

from refiner_cli.printable import ACTIVE, escape_as_json, json_text

RANKED_FIELDS = {
    "predictions": ("state", "object", "score", "probability", "seen"),
    "states": ("name", "probability"),
    "objects": ("name", "probability"),
}
IMAGE_FIELDS = (
    "path", "status", "error", "size", "modified", "verdict", "verdict_state", "verdict_object", "threshold",
)  # fmt: skip
INPUTS = "inputs"  # what the source says about the image; a JSON object in a flat row
FIRST_FIELDS = ("path", "status", "error")  # those that a short row begins with
SHORT_FIELDS = ("state", "object", "probability", "seen")
SHORT_PREDICTIONS = 3
NUMBERS = {"score", "probability"}
_NOT_IN_CSV = re.compile(f"[\x00-\x08\x0b\x0c\x0e-\x1f{ACTIVE}]")
_CSV_ESCAPE = re.compile(r"\\u([0-9a-f]{4})")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
RowDict = dict[str, Any]  # a row as a JSON object, or flat


def wide_columns(top_k: int, *, inputs: bool = False) -> list[str]:
    """The names of a wide row."""
    ranked = [
        f"{group}.{rank}.{field}"
        for group, fields in RANKED_FIELDS.items()
        for rank in range(1, top_k + 1)
        for field in fields
    ]
    return [*IMAGE_FIELDS, *ranked, *([INPUTS] if inputs else [])]


def short_columns(top_k: int, *, inputs: bool = False) -> list[str]:
    """The names of a short row."""
    ranks = range(1, min(top_k, SHORT_PREDICTIONS) + 1)
    ranked = [short_name(field, rank) for rank in ranks for field in SHORT_FIELDS]
    rest = [name for name in IMAGE_FIELDS if name not in FIRST_FIELDS]
    return [*FIRST_FIELDS, *ranked, *rest, *([INPUTS] if inputs else [])]


def short_name(field: str, rank: int) -> str:
    return field if rank == 1 else f"{field}_{rank}"


def flatten_row(row: RowDict) -> RowDict:
    """A wide row without nesting."""
    made = flat_fields(row)
    for group in RANKED_FIELDS:
        for rank, item in enumerate(row[group], 1):
            made |= {f"{group}.{rank}.{field}": content for field, content in item.items()}
    return made


def shorten_row(row: RowDict) -> RowDict:
    """A short row without nesting."""
    made = flat_fields(row)
    for rank, item in enumerate(row["predictions"][:SHORT_PREDICTIONS], 1):
        made |= {short_name(field, rank): item[field] for field in SHORT_FIELDS}
    return made


def flat_fields(row: RowDict) -> RowDict:
    made = {name: row.get(name) for name in IMAGE_FIELDS}
    return made | {INPUTS: json_text(row[INPUTS])} if row.get(INPUTS) else made


def nest_row(row: RowDict) -> RowDict:
    """The inverse of both; what a short row left out is None or empty.

    Absent, None and the empty text are the same in a flat row.
    """
    made: RowDict = {name: row.get(name) or None for name in IMAGE_FIELDS}
    made["size"] = None if row.get("size") in {None, ""} else int(row["size"])
    made["threshold"] = None if row.get("threshold") in {None, ""} else float(row["threshold"])
    inputs = {INPUTS: json.loads(row[INPUTS], strict=False)} if row.get(INPUTS) else {}
    if "state" in row:
        return made | {"predictions": _nest_short(row), "states": [], "objects": [], **inputs}
    for group, fields in RANKED_FIELDS.items():
        made[group] = []
        while (rank := f"{group}.{len(made[group]) + 1}.{fields[0]}") in row and row[rank]:
            stem = rank.removesuffix(fields[0])
            made[group].append({field: typed(field, row[stem + field]) for field in fields})
    return made | inputs


def _nest_short(row: RowDict) -> list[RowDict]:
    found: list[RowDict] = []
    for rank in range(1, SHORT_PREDICTIONS + 1):
        if not row.get(short_name("state", rank)):
            break
        fields = {field: typed(field, row[short_name(field, rank)]) for field in SHORT_FIELDS}
        found.append(fields | {"score": None})
    return found


def typed(field: str, content: Any) -> Any:
    if field in NUMBERS:
        return float(content)
    return content in {True, "True"} if field == "seen" else content


def to_cell(content: Any) -> Any:
    """A value as it stands in a CSV file."""
    if not isinstance(content, str):
        return content
    text = escape_as_json(content, _NOT_IN_CSV)
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(text: Any) -> Any:
    """The inverse of :func:`to_cell` for text; numbers stay text."""
    if not isinstance(text, str):
        return text
    if text.startswith("'") and _FORMULA.match(text):
        text = text[1:]
    return _CSV_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
