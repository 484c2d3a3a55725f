"""What ``refiner eval`` and ``refiner compare`` are asked to compute and to write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from refiner_cli.data.benchmark import Split, World


@dataclass(frozen=True)
class EvalRequest:
    """Options of one command."""

    dataset: str | None
    split: Split
    worlds: tuple[World, ...]
    protocol: Literal["exact", "legacy"]
    top_k: tuple[int, ...]
    bootstrap_samples: int
    feasibility: Literal["none", "mask", "soft"]
    vectors: Path | None
    device: str
    precision: str
    batch: int
    workers: int
    save_scores: Path | None = None
    per_image: Path | None = None
    report: Path | None = None
