"""A model as ONNX: what lies in the folder, and what its config.json may say.

::

    image.onnx    preprocessed images, B x 3 x H x W float32 -> a unit vector per role, B x D
    scores.onnx   these vectors and the text vectors -> scores of all pairs, B x P
    *.onnx.data   the weights of a graph that is too large for one file
    text.npz      the text vectors: pairs P x D, and states, objects, offsets where the method has them
    config.json   labels, preprocessing, calibration, precision, and how well the export agrees with the model
    README.md     the model card

Nothing in it needs PyTorch. To the scores of unseen pairs the bias of the calibration is added:
``bias``, or ``open_bias`` where the labels are every state with every object.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from refiner_cli.core.model_io.schema import (
    CONFIG,
    MODEL_FORMATS,
    Part,
    PreprocessConfig,
    StoredCalibration,
    StoredLabels,
    StoredName,
    StoredText,
)
from refiner_cli.core.model_io.stored_json import as_json, read_json, schema_errors
from refiner_cli.errors import EnvironmentLacksError, ModelFileError

IMAGE_FILE, SCORES_FILE, TEXT_FILE = "image.onnx", "scores.onnx", "text.npz"
ROLES_OF_VECTORS = ("composition", "state", "object")
BANK_TENSORS = ("pairs", "states", "objects", "offsets")
OnnxPrecision = Literal["fp32", "int8"]
ChangedShare = Annotated[float, Field(ge=0, le=1)]


class OnnxBackbone(Part):
    """The backbone that was exported."""

    name: StoredName
    pretrained: Annotated[str, Field(max_length=1_000)]
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Agreement(Part):
    """How far the export is from the model, on some images."""

    images: Annotated[int, Field(ge=1)]
    source: StoredText  # which images
    largest_difference: Annotated[float, Field(ge=0)]  # of two scores
    changed: ChangedShare  # of the images, in their best pair
    allowed_difference: Annotated[float, Field(ge=0)]
    allowed_changed: ChangedShare


class StoredOnnx(Part):
    """config.json of an ONNX export."""

    format: Literal["refiner.onnx/1"]
    refiner: StoredText
    method: StoredName
    dataset: StoredText
    dataset_fingerprint: StoredText
    step: Annotated[int, Field(ge=0, lt=2**63)]
    metrics: dict[StoredName, float | None]
    precision: OnnxPrecision
    width: Annotated[int, Field(ge=1, le=16_384)]  # D
    outputs: Annotated[list[StoredName], Field(min_length=3, max_length=3)]  # of image.onnx
    tensors: Annotated[list[StoredName], Field(min_length=1, max_length=4)]  # of text.npz
    backbone: OnnxBackbone
    preprocess: PreprocessConfig
    labels: StoredLabels
    calibration: StoredCalibration
    agreement: Agreement


def is_onnx(folder: Path) -> bool:
    """Whether a folder is an ONNX export.

    Another one may hold a graph, too: in a repository of the Hub the files of an earlier export stay.
    """
    if not ((folder / IMAGE_FILE).is_file() and (folder / CONFIG).is_file()):
        return False
    try:
        config = read_json(folder / CONFIG)
    except (OSError, ValueError):
        return True
    return not (isinstance(config, dict) and str(config.get("format")).startswith(MODEL_FORMATS))


def read_onnx_config(folder: Path) -> tuple[dict[str, Any], StoredOnnx]:
    """config.json of an ONNX export, as it is and checked. Raises ModelFileError."""
    file = folder / CONFIG
    try:
        config = read_json(file)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"The model file {file} cannot be read ({error}).") from None
    with schema_errors(file):
        return config, StoredOnnx.model_validate_json(as_json(config))


def require_package(name: str, what: str) -> None:
    """Raise EnvironmentLacksError if a package of the extra ``onnx`` is missing."""
    from importlib.util import find_spec

    if find_spec(name) is None:
        raise EnvironmentLacksError(
            f"{what} needs the package {name}, which is not installed.",
            hint="Run: pip install 'refiner-czsl[onnx]'",
        )
