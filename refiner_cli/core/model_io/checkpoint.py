"""A model directory: weights as safetensors, and everything else as JSON.

::

    config.json          format, method, model, backbone, label space, calibration, metrics
    model.safetensors    what was trained or fitted ("trained.*") and, in an export, the backbone ("clip.*")
    tokenizer/           only for backbones whose tokenizer is not CLIP's, in an export
    README.md            the model card, in an export

Nothing in it can run code. A directory appears in one rename, so it is complete or absent.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from refiner_cli._version import __version__
from refiner_cli.config import MethodConfig
from refiner_cli.core.model_io.migrate import OLD_FORMATS, migrate_config, migrate_tensors
from refiner_cli.core.model_io.schema import CLIP, CONFIG, MODEL_FORMATS, ONNX_FORMAT, StoredModel
from refiner_cli.core.model_io.stored_backbone import stored_backbone
from refiner_cli.core.model_io.stored_json import read_json, write_stored
from refiner_cli.core.model_io.tensor_files import load_tensors_from, save_tensors
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.hubness import CENTRES, HubnessCorrection
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.towers.weight_files import FLOATS
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import ConfigError, DatasetError, ModelFileError, RefinerError

MODEL_FORMAT = "refiner.model/3"
WEIGHTS_FILE = "model.safetensors"
TRAINED = "trained."
CAPPED = {"adapter_blocks"}  # settings above the backbone's size mean all of it
INDEX_TENSORS = ("index", "position_ids", "num_batches_tracked")  # integers that some towers keep


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a stored model besides its weights."""

    method: str
    dataset: str
    dataset_path: str  # where it was
    dataset_fingerprint: str
    step: int
    metrics: dict[str, Any]  # validation metrics, percent


def stored_config(model: Model, info: ModelInfo, *, with_backbone: bool) -> dict[str, Any]:
    """The content of config.json."""
    spec = model.backbone.spec
    return {
        "format": MODEL_FORMAT,
        "refiner": __version__,
        **dataclasses.asdict(info),
        "metrics": defined_metrics(info),
        "model": model.config.model_dump(),
        "backbone": {
            **dataclasses.asdict(spec),
            "fingerprint": model.backbone.fingerprint_by_name(),
            "included": with_backbone,
        },
        "labels": model.space.to_json(),
        "calibration": model.calibration.to_json(),
    }


def defined_metrics(info: ModelInfo) -> dict[str, Any]:
    """The metrics as JSON has them: None for what is no number or infinite, as for what is undefined."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in info.metrics.items()
    }


def write_model(
    folder: Path, model: Model, info: ModelInfo, *, with_backbone: bool, dtype: torch.dtype = torch.float32
) -> None:
    """Write config.json and model.safetensors into an existing folder.

    Args:
        dtype: of the weights; a tensor of one number (a logit scale, a gate) stays float32.
    """
    tensors = {TRAINED + name: p.detach() for name, p in model.saved_tensors().items()}
    if with_backbone:
        tensors |= {CLIP + name: value for name, value in model.clip.state_dict().items()}
    tensors = {name: stored_form(value, dtype) for name, value in tensors.items()}
    save_tensors(tensors, folder / WEIGHTS_FILE, {"format": MODEL_FORMAT})
    write_stored(folder / CONFIG, stored_config(model, info, with_backbone=with_backbone))


def stored_form(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy on the CPU as it is stored: a logit scale rounded to bf16 is off by up to 1.6 %."""
    if value.is_floating_point():
        value = value.to(torch.float32 if value.numel() == 1 else dtype)
    return value.cpu().contiguous().clone()


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model directory, in the present format and checked. Raises ModelFileError."""
    return read_stored(folder)[0]


def read_stored(folder: Path) -> tuple[dict[str, Any], StoredModel, MethodConfig]:
    """config.json as it is, as checked values, and the method's settings. Raises ModelFileError."""
    file = folder / CONFIG
    try:
        config = read_json(file)
    except FileNotFoundError:
        raise ModelFileError(f"{folder} is not a model: the file {CONFIG} is missing.") from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"The model file {file} cannot be read ({error}).") from None
    found = config.get("format") if isinstance(config, dict) else None
    if found in OLD_FORMATS:
        try:
            config = migrate_config(config, MODEL_FORMAT, file)
        except ModelFileError:
            raise
        except (KeyError, TypeError, AttributeError, RefinerError) as error:
            raise ModelFileError(f"{file} is incomplete or damaged ({error!r}).") from None
    elif found != MODEL_FORMAT:
        raise unknown_format(found, file)
    return config, *StoredModel.parse(config, file)


def unknown_format(found: object, file: Path) -> ModelFileError:
    """The error for a config.json of something else, or of a version to come."""
    if not isinstance(found, str):
        return ModelFileError(f"{file} is not the configuration of a model of refiner: it states no format.")
    hint = ""
    if found == ONNX_FORMAT:
        hint = "An ONNX export is for 'refiner predict': give the run that it was made from."
    elif found.startswith(MODEL_FORMATS):
        hint = "A newer version may have written it: update refiner."
    return ModelFileError(f"{file} has the format {found!r}; this version reads {MODEL_FORMAT!r}.", hint=hint)


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """model.safetensors of a model directory. Raises ModelFileError if it is missing or torn."""
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        state = "is not a regular file" if file.exists() else "is missing"
        raise ModelFileError(f"{folder} is not a model: the file {WEIGHTS_FILE} {state}.")
    try:
        return migrate_tensors(load_tensors_from(file))
    except Exception as error:  # noqa: BLE001 - damaged headers fail in many ways
        raise ModelFileError(
            f"The weights {file} are damaged or cut short ({error}).", hint="Export or copy the model again."
        ) from None


def learned_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of a model's file that were trained or fitted, as :meth:`Model.saved_tensors` names them."""
    return {name.removeprefix(TRAINED): value for name, value in tensors.items() if name.startswith(TRAINED)}


def require_numbers(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Raise ModelFileError unless every tensor is a model's and holds finite floating-point numbers."""
    for name, value in tensors.items():
        if not name.startswith((TRAINED, CLIP)):
            raise ModelFileError(f"The weights {file} hold a tensor that no model has, {name[:100]!r}.")
        if name.startswith(CLIP) and name.endswith(INDEX_TENSORS) and value.dtype == torch.int64:
            continue
        if value.dtype not in FLOATS:
            kind = str(value.dtype).removeprefix("torch.")
            raise ModelFileError(f"The weights {file} are damaged: {name!r} has the type {kind}.")
        if not bool(value.isfinite().all()):
            raise ModelFileError(
                f"The weights {file} hold numbers that are not finite, in {name!r}.",
                hint="The training may have diverged; train again with a lower train.lr.",
            )


def require_sizes(settings: MethodConfig, tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Raise ModelFileError for a size in the settings that no stored tensor has: it would be allocated."""
    largest = max((size for value in tensors.values() for size in value.shape), default=0)
    for key, value in settings.model_dump(exclude=CAPPED).items():
        if isinstance(value, int) and value > max(largest, 256):
            raise ModelFileError(f"{file} does not fit its weights: model.{key} is {value}.")


def model_info(config: dict[str, Any]) -> ModelInfo:
    """The description part of config.json."""
    return ModelInfo(**{field.name: config[field.name] for field in dataclasses.fields(ModelInfo)})


def read_model(folder: Path) -> tuple[Model, ModelInfo]:
    """Build the model that a directory describes, on the CPU, in evaluation.

    Raises:
        ModelFileError: a file is missing, torn or does not fit, a value is impossible, or the backbone is
            another one.
        FetchError: the backbone is not included and cannot be fetched.
    """
    config, stored, settings = read_stored(folder)
    tensors, file = read_tensors(folder), folder / WEIGHTS_FILE
    require_numbers(tensors, file)
    require_sizes(settings, tensors, folder / CONFIG)
    try:
        space = LabelSpace.from_json(config["labels"])
        backbone = stored_backbone(folder, config, stored.backbone, tensors)
        model = build_model(stored.method, backbone, settings, space)
    except (ConfigError, DatasetError) as error:
        raise ModelFileError(f"The model {folder} cannot be built: {error.message}") from None
    load_saved_tensors(model, learned_tensors(tensors), file)
    if not (math.isfinite(backbone.logit_scale) and math.isfinite(backbone.logit_bias)):
        raise ModelFileError(f"The weights {file} are damaged: the logit scale or bias is not finite.")
    model.calibration = stored.calibration.value()
    if model.calibration.hubness_strength and model.hubness is None:
        raise ModelFileError(f"{file} does not fit its {CONFIG}: the tensor {CENTRES!r} is missing.")
    return model.eval(), model_info(config)


def load_saved_tensors(model: Model, saved: dict[str, torch.Tensor], source: Path) -> None:
    """Copy stored values into a model. Raises ModelFileError if they do not fit."""
    model.hubness = None
    if CENTRES in saved:
        pairs, joint = len(model.space.seen_pairs), model.backbone.embed_dim
        model.hubness = HubnessCorrection(pairs, joint).to(model.device)
    wanted = model.saved_tensors()
    if wanted.keys() != saved.keys():
        odd = sorted(wanted.keys() ^ saved.keys())[0]
        raise ModelFileError(
            f"{source} does not fit its {CONFIG}: the tensor {odd!r} is in only one of them."
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            if parameter.shape != saved[name].shape:
                raise ModelFileError(
                    f"{source} does not fit its {CONFIG}: the tensor {name!r} has a different shape."
                )
            parameter.copy_(saved[name])
