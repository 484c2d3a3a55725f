"""How ``predict``, ``index`` and ``search`` make a model ready: precision, batch size, decoding processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refiner_cli.cli.common import open_model
from refiner_cli.cli.console import terminal

if TYPE_CHECKING:
    from refiner_cli.core.models.base import Model
    from refiner_cli.data.labels import LabelSpace
    from refiner_cli.inference.index import Index
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
    from refiner_cli.core.runtime.device import pick_precision
    from refiner_cli.core.runtime.loader import pick_num_workers
    from refiner_cli.inference.batch_size import pick_batch_size
    from refiner_cli.inference.object_states import MultiStateRecogniser
    from refiner_cli.inference.recogniser import Recogniser

    precision, why = pick_precision(options.precision, model.device)
    recogniser = Recogniser(model, space, precision)
    if options.object_states:
        recogniser = MultiStateRecogniser(model, space, precision, options.object_states)
    batch, because = pick_batch_size(options.batch, recogniser)
    workers, reason = pick_num_workers(options.workers, model.device)
    name = str(precision).removeprefix("torch.")
    terminal.note(
        f"precision {name} ({why}), batch {batch} ({because}), {workers} decoding processes ({reason})"
    )
    return PreparedRecogniser(recogniser, batch, workers)


def open_index_model(index: Index, model: Path | None, device: str) -> Model:
    """The model that an index was made with; ``model`` if it lies elsewhere now."""
    return open_model(model or Path(index.info.model["path"]), device)[0]


def name_model(model: Path) -> str:
    """A model as an index names it: its folder, or the name of a backbone."""
    return str(model.resolve() if model.exists() else model)
