"""What a ``refiner predict`` command asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

RowsFormat = Literal["table", "jsonl", "csv", "parquet"]
Patterns = tuple[str, ...]


@dataclass(frozen=True)
class PartsRequest:
    """What the command line says about an output of parts."""

    part: str | None  # i/n; None: as Slurm or torchrun say
    size: int  # images of a unit
    devices: str | None  # all, or a list; None: one process
    engine: Literal["local", "ray"]


@dataclass(frozen=True)
class PredictRequest:
    """What the command line says."""

    model: Path
    paths: list[str]
    out: Path | None
    parts: PartsRequest | None  # None: the output is one file, or stdout
    rows: RowsFormat
    wide: bool  # all columns, for CSV
    top_k: int
    object_states: int  # objects whose states are listed one by one
    min_precision: float | None
    min_probability: float | None
    world: Literal["closed", "open"]
    states: Path | None
    objects: Path | None
    pairs: Path | None
    include: Patterns
    exclude: Patterns
    null: bool
    boxes: Path | None
    box_margin: float
    box_confidence: float
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
