"""How ``predict`` and ``index`` make a model ready: precision, batch size, decoding processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refiner_cli.cli.common import runtime_options
from refiner_cli.cli.console import terminal

if TYPE_CHECKING:
    from refiner_cli.core.models.base import Model
    from refiner_cli.data.labels import LabelSpace
    from refiner_cli.inference.recogniser import Recogniser


@dataclass(frozen=True)
class EncodingOptions:
    """What the command line says of how to encode images."""

    precision: str = "auto"
    batch: int = 0  # images at once; 0: automatic
    workers: int = -1  # processes that decode; -1: automatic
    object_states: int = 0  # objects whose states are listed one by one


@dataclass(frozen=True)
class PreparedRecogniser:
    """A model with its candidates, and how to run it."""

    recogniser: Recogniser
    batch: int
    workers: int


def prepare_recogniser(
    model: Model, space: LabelSpace | None, options: EncodingOptions
) -> PreparedRecogniser:
    """Choose what is left to choose, and note the reasons; ``space`` None: the model's own candidates."""
    from refiner_cli.inference.batch_size import pick_batch_size
    from refiner_cli.inference.object_states import MultiStateRecogniser
    from refiner_cli.inference.recogniser import Recogniser

    runtime = runtime_options(model, options.precision, options.workers)
    recogniser = Recogniser(model, space, runtime.precision)
    if options.object_states:
        recogniser = MultiStateRecogniser(model, space, runtime.precision, options.object_states)
    batch, reason = pick_batch_size(options.batch, recogniser)
    terminal.note(f"batch {batch} ({reason})")
    return PreparedRecogniser(recogniser, batch, runtime.num_workers)


def name_model(model: Path) -> str:
    """A model as an index names it: its folder, or the name of a backbone."""
    return str(model.resolve() if model.exists() else model)
