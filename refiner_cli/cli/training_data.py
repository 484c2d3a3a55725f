"""What ``train`` and ``eval`` compute on: a dataset, or an index with labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from refiner_cli.cli.common import open_dataset
from refiner_cli.errors import DatasetError, UsageError
from refiner_cli.printable import quoted

if TYPE_CHECKING:
    from refiner_cli.data.benchmark import Benchmark
    from refiner_cli.settings import Layer
    from refiner_cli.training.run_dir import Run


def index_settings(dataset: str, labels: Path | None) -> Layer | None:
    """The settings that follow from an index as the dataset; None for any other.

    Raises UsageError if labels are missing, or given for something that is not an index.
    """
    from refiner_cli.inference.index import Index, is_index

    if not is_index(Path(dataset)):
        if labels:
            raise UsageError("--labels needs an index as DATASET.", hint="Make one with 'refiner index'.")
        return None
    if labels is None:
        raise UsageError(
            f"{dataset} is an index, which says nothing of states and objects.", hint="Add --labels FILE."
        )
    from refiner_cli.inference.labelled_index import index_layer

    return index_layer(Index.open(Path(dataset)))


def open_training_data(dataset: str, labels: Path | None) -> Benchmark:
    """The benchmark that a name, a folder, or an index with labels means."""
    if labels is None:
        return open_dataset(dataset)
    from refiner_cli.inference.index import Index
    from refiner_cli.inference.labelled_index import labelled_benchmark

    return labelled_benchmark(Index.open(Path(dataset)), labels)


def open_run_data(run: Run, moved: str = "", *, hint: str = "") -> Benchmark:
    """The benchmark that a run was started on.

    Args:
        moved: where the dataset is now; "": where it was.
        hint: how its new place is named; "": by resuming the run.

    Raises DatasetError if it is no longer there.
    """
    from refiner_cli.data.benchmark import load_benchmark

    if not moved and not Path(run.dataset.path).is_dir():
        raise DatasetError(
            f"The dataset of the run {run.folder} is no longer at {run.dataset.path}.",
            hint=hint
            or f"Name its new place: refiner train --resume --out {quoted(run.folder)} --dataset DIR",
        )
    if run.dataset.labels:
        place = moved or run.dataset.path
        return open_training_data(place, run.folder / run.dataset.labels)
    found = open_dataset(moved).root if moved else Path(run.dataset.path)
    return load_benchmark(found, run.dataset.name)


def learned_from_vectors(model: Path) -> bool:
    """Whether a model is a run that was trained on a labelled index."""
    from refiner_cli.training.run_dir import Run, is_run

    return is_run(model) and bool(Run.open(model).dataset.labels)


def kept_vectors(model: Path) -> Benchmark | None:
    """The labelled index that a run was trained on; None for any other model."""
    from refiner_cli.training.run_dir import Run

    return open_run_data(Run.open(model)) if learned_from_vectors(model) else None
