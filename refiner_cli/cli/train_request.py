"""What a ``refiner train`` command asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refiner_cli.errors import UsageError
from refiner_cli.printable import quoted

if TYPE_CHECKING:
    from refiner_cli.config import Config


@dataclass(frozen=True)
class TrainRequest:
    """One ``refiner train`` command."""

    dataset: str  # with --resume: where the dataset is now, or "": where it was
    config: Config | None  # None: resume what lies in ``out``
    out: Path | None
    seeds: int
    labels: Path | None = None  # of the images of an index, which is the dataset
    skip_unreadable: bool = False
    asked: Mapping[str, tuple[Any, str]] = field(
        default_factory=dict
    )  # with --resume: value and option by key


def resumption(
    dataset: str | None,
    moved: str | None,
    out: Path | None,
    seeds: int,
    labels: Path | None,
    *,
    skip: bool,
    dry_run: bool,
) -> TrainRequest:
    """The request of ``--resume``. Raises UsageError for options that it cannot have."""
    if out is None:
        raise UsageError("--resume needs the run: --out RUN.")
    if dataset and moved:
        raise UsageError(
            f"The dataset is given twice, as {dataset} and as --dataset {moved}.", hint="Give it once."
        )
    if dry_run:
        raise UsageError(
            "--dry-run is for a new run.", hint=f"'refiner info {quoted(out)}' shows an existing one."
        )
    if labels:
        raise UsageError("--labels is for a new run.", hint="A resumed run has kept its labels.")
    if skip:
        raise UsageError(
            "--on-error skip is decided when a run starts.",
            hint="A resumed run does without the same images.",
        )
    return TrainRequest(dataset or moved or "", None, out, seeds)
