"""The row of an image, and the formats it is written in: JSON lines, CSV and Parquet.

CSV and Parquet flatten the same names: ``predictions.1.state``, ``states.2.probability`` and so on.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from refiner_cli.errors import EnvironmentLacksError, UsageError
from refiner_cli.inference.recogniser import Prediction

PRIMITIVES = {
    "predictions": ("state", "object", "score", "probability", "seen"),
    "states": ("name", "probability"),
    "objects": ("name", "probability"),
}
NUMBERS = {"score", "probability"}
ROW_GROUP = 8192  # rows of a Parquet file that are in memory at once
Value = dict[str, Any]  # a row as a JSON object, or flat


@dataclass(frozen=True)
class Row:
    """What is known of one image; ``prediction`` is None where ``error`` says why."""

    path: str
    prediction: Prediction | None
    error: str = ""

    def to_json(self) -> Value:
        made = self.prediction
        return {
            "path": self.path,
            "status": "ok" if made else "error",
            "error": self.error or None,
            "predictions": [dict(vars(one)) for one in made.compositions] if made else [],
            "states": [dict(vars(one)) for one in made.states] if made else [],
            "objects": [dict(vars(one)) for one in made.objects] if made else [],
        }


class JsonLines:
    """Takes rows one by one and lets none wait in a buffer."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, row: Row) -> None:
        self.stream.write(json.dumps(row.to_json(), ensure_ascii=False) + "\n")
        self.stream.flush()


def format_of(file: Path) -> str:
    """``.jsonl``, ``.csv`` or ``.parquet``. Raises UsageError, or EnvironmentLacksError without pyarrow."""
    kind = file.suffix.lower()
    if kind not in {".jsonl", ".csv", ".parquet"}:
        raise UsageError(f"The output {file} is of no known kind.", hint="Use .jsonl, .csv or .parquet.")
    if kind == ".parquet":
        try:
            import pyarrow as pa  # noqa: F401
        except ImportError:
            raise EnvironmentLacksError(
                "Parquet needs the package pyarrow.", hint="Run: pip install pyarrow"
            ) from None
    return kind


def columns(top_k: int) -> list[str]:
    """The names of a flat row."""
    return ["path", "status", "error"] + [
        f"{group}.{rank}.{field}"
        for group, fields in PRIMITIVES.items()
        for rank in range(1, top_k + 1)
        for field in fields
    ]


def flatten_value(value: Value) -> Value:
    """A row without nesting."""
    made = {name: value[name] for name in ("path", "status", "error")}
    for group in PRIMITIVES:
        for rank, item in enumerate(value[group], 1):
            made |= {f"{group}.{rank}.{field}": content for field, content in item.items()}
    return made


def nest_value(value: Value) -> Value:
    """The inverse of :func:`flat`; absent, None and the empty text are the same there."""
    made: Value = {"path": value["path"], "status": value["status"], "error": value["error"] or None}
    for group, fields in PRIMITIVES.items():
        made[group] = []
        while (rank := f"{group}.{len(made[group]) + 1}.{fields[0]}") in value and value[rank]:
            stem = rank.removesuffix(fields[0])
            made[group].append({field: typed(field, value[stem + field]) for field in fields})
    return made


def typed(field: str, content: Any) -> Any:
    if field in NUMBERS:
        return float(content)
    return content in {True, "True"} if field == "seen" else content


def write_values(file: Path, kind: str, values: Iterable[Value], top_k: int) -> None:
    """Write rows as a whole file of its kind, in constant memory."""
    if kind == ".parquet":
        write_parquet(file, values, top_k)
        return
    with file.open("w", encoding="utf-8", newline="") as stream:
        if kind == ".jsonl":
            stream.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        else:
            writer = csv.DictWriter(stream, columns(top_k), lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(flatten_value, values))


def write_parquet(file: Path, values: Iterable[Value], top_k: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {"score": pa.float64(), "probability": pa.float64(), "seen": pa.bool_()}
    schema = pa.schema([(name, kinds.get(name.rpartition(".")[2], pa.string())) for name in columns(top_k)])
    rows = iter(values)
    with parquet.ParquetWriter(file, schema) as writer:
        while some := [flatten_value(value) for value in islice(rows, ROW_GROUP)]:
            writer.write_table(pa.Table.from_pylist(some, schema))


def read_values(file: Path) -> Iterator[Value]:
    """The rows of a finished file, whatever its kind, one by one."""
    if file.suffix.lower() == ".parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(ROW_GROUP):
                yield from map(nest_value, batch.to_pylist())
        return
    with file.open(encoding="utf-8", newline="") as stream:
        if file.suffix.lower() == ".csv":
            yield from map(nest_value, csv.DictReader(stream))
        else:
            yield from map(json.loads, stream)
