"""The JSON files of a stored model: read with limits, and checked against a schema."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from refiner_cli.errors import ModelFileError

MAX_CONFIG_BYTES = 64 * 2**20


def read_json(file: Path) -> Any:
    """The content of a JSON file. Raises OSError or ValueError, also if it is huge or not a regular file."""
    if file.exists() and not file.is_file():
        raise ValueError("it is not a regular file")
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"it is larger than {MAX_CONFIG_BYTES // 2**20} MiB")
    try:
        return json.loads(file.read_bytes(), parse_constant=reject_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_stored(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with a line for each value, but all labels on one: there may be a million.

    A path that is not UTF-8 holds lone surrogates; as ``\\udcff`` they are valid JSON.
    """
    parts = []
    for key, value in content.items():
        part = json.dumps(value, ensure_ascii=False, indent=None if key == "labels" else 2)
        parts.append(f"  {json.dumps(key)}: " + part.replace("\n", "\n  "))
    text = ",\n".join(parts)
    file.write_text(f"{{\n{text}\n}}\n", "utf-8", "backslashreplace")


def reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def as_json(content: Any) -> bytes:
    """For validation: as JSON a list is a tuple, and true is not 1. A path that is not UTF-8 is fine."""
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")


@contextlib.contextmanager
def schema_errors(source: Path) -> Iterator[None]:
    """Raise ModelFileError, naming file and key, where stored content does not fit its schema."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the content"
        reason = first["msg"].removeprefix("Value error, ")
        raise ModelFileError(
            f"{source} is incomplete or damaged: {key}: {reason[:1].lower()}{reason[1:]}."
        ) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{source} is damaged ({type(error).__name__}).") from None
