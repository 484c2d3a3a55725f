"""Refiner: recognise compositions - a state of an object - seen in training or not.

::

    import refiner_cli

    model = refiner_cli.load("runs/demo")           # a run or an exported model
    for made in model.predict(["apple.jpg"]):       # paths or PIL images
        print(made.compositions[0])                 # state, object, score, probability, seen
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from refiner_cli._version import __version__
from refiner_cli.errors import RefinerError

if TYPE_CHECKING:
    from refiner_cli.data.benchmark import Benchmark, load_benchmark
    from refiner_cli.data.labels import LabelSpace
    from refiner_cli.inference.recogniser import Composition, Prediction, Primitive, Recogniser

__all__ = [
    "Benchmark",
    "Composition",
    "LabelSpace",
    "Prediction",
    "Primitive",
    "Recogniser",
    "RefinerError",
    "__version__",
    "load",
    "load_benchmark",
]

# Loaded when first asked for, so that importing the package does not import torch.
_HOMES = {
    "Benchmark": "refiner_cli.data.benchmark",
    "load_benchmark": "refiner_cli.data.benchmark",
    "LabelSpace": "refiner_cli.data.labels",
    "Composition": "refiner_cli.inference.recogniser",
    "Primitive": "refiner_cli.inference.recogniser",
    "Prediction": "refiner_cli.inference.recogniser",
    "Recogniser": "refiner_cli.inference.recogniser",
}


def load(path: str | Path, *, device: str = "auto", precision: str = "auto") -> Recogniser:
    """Load a run directory or an exported model, ready to predict.

    Args:
        path: what ``refiner train --out`` or ``refiner export`` made.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, fp32, bf16 or fp16.

    Raises:
        ModelFileError: a file is missing, torn or does not fit.
        EnvironmentLacksError: the device is not there.
        UsageError: an ONNX export has no such device or precision.
    """
    from refiner_cli.core.model_io.checkpoint import read_model
    from refiner_cli.core.model_io.onnx_files import is_onnx
    from refiner_cli.core.model_io.onnx_model import check_runs_on, read_onnx
    from refiner_cli.core.runtime.device import pick_device, pick_precision
    from refiner_cli.inference.recogniser import Recogniser
    from refiner_cli.training.run_dir import model_folder

    folder = model_folder(Path(path))
    if is_onnx(folder):
        check_runs_on(device, precision)
        return Recogniser(read_onnx(folder)[0])
    chosen, _ = pick_device(device)
    model, _ = read_model(folder)
    return Recogniser(model.to(chosen), precision=pick_precision(precision, chosen)[0])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
