"""Where rows go: JSON lines or CSV, one row an image, flushed as they come."""

from __future__ import annotations

import csv
import dataclasses
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TextIO

from refiner_cli.inference.recogniser import Prediction


@dataclass(frozen=True)
class Row:
    """What is known of one image; ``prediction`` is None where ``error`` says why."""

    path: str
    prediction: Prediction | None
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        made = self.prediction
        return {
            "path": self.path,
            "status": "ok" if made else "error",
            "error": self.error or None,
            "predictions": [dataclasses.asdict(c) for c in made.compositions] if made else [],
            "states": [dataclasses.asdict(part) for part in made.states] if made else [],
            "objects": [dataclasses.asdict(part) for part in made.objects] if made else [],
        }


class Sink(ABC):
    """Takes rows one by one."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    @abstractmethod
    def write(self, row: Row) -> None: ...


class JsonLines(Sink):
    def write(self, row: Row) -> None:
        self.stream.write(json.dumps(row.to_json(), ensure_ascii=False) + "\n")
        self.stream.flush()


class Csv(Sink):
    """The same names, flattened: ``predictions.1.state``, ``predictions.1.object`` and so on."""

    def __init__(self, stream: TextIO, top_k: int) -> None:
        super().__init__(stream)
        parts: dict[str, tuple[str, ...]] = {
            "predictions": ("state", "object", "score", "probability", "seen")
        }
        parts |= {"states": ("name", "probability"), "objects": ("name", "probability")}
        self.columns = ["path", "status", "error"] + [
            f"{group}.{rank}.{field}"
            for group, fields in parts.items()
            for rank in range(1, top_k + 1)
            for field in fields
        ]
        self.writer = csv.DictWriter(stream, self.columns, lineterminator="\n")
        self.writer.writeheader()

    def write(self, row: Row) -> None:
        value = row.to_json()
        flat = {name: value[name] for name in ("path", "status", "error")}
        for group in ("predictions", "states", "objects"):
            for rank, item in enumerate(value[group], 1):
                flat |= {f"{group}.{rank}.{field}": content for field, content in item.items()}
        self.writer.writerow(flat)
        self.stream.flush()


def open_sink(kind: str, stream: TextIO, top_k: int) -> Sink:
    """The sink for a file ending, ``.jsonl`` or ``.csv``."""
    return Csv(stream, top_k) if kind == ".csv" else JsonLines(stream)
