"""What a ``refiner predict`` command asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

RowsFormat = Literal["table", "jsonl", "csv", "parquet"]
Patterns = tuple[str, ...]


@dataclass(frozen=True)
class PredictRequest:
    """What the command line says."""

    model: Path
    paths: list[str]
    out: Path | None
    rows: RowsFormat
    wide: bool  # all columns, for CSV
    top_k: int
    world: Literal["closed", "open"]
    states: Path | None
    objects: Path | None
    pairs: Path | None
    include: Patterns
    exclude: Patterns
    null: bool
    stop_at_error: bool
    keep_errors: bool
    overwrite: bool
    gallery: Path | None
    heatmaps: Path | None
    keep_index: Path | None
    device: str
    precision: str
    batch: int
    workers: int
