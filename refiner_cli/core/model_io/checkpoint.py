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
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from refiner_cli._version import __version__
from refiner_cli.config import method_section
from refiner_cli.core.model_io.migrate import OLD_FORMAT, migrate_config, migrate_tensors
from refiner_cli.core.models.base import Calibration, Model
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.towers.backbone import Backbone, BackboneSpec, build_backbone, reload_backbone
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import ModelFileError, RefinerError

FORMAT = "refiner.model/2"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TRAINED, CLIP = "trained.", "clip."


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a stored model besides its weights."""

    method: str
    dataset: str
    dataset_path: str  # where it was
    dataset_fingerprint: str
    step: int
    metrics: dict[str, Any]  # validation metrics, percent


def describe(model: Model, info: ModelInfo, *, with_backbone: bool) -> dict[str, Any]:
    """The content of config.json."""
    spec = model.backbone.spec
    return {
        "format": FORMAT,
        "refiner": __version__,
        **dataclasses.asdict(info),
        "model": model.config.model_dump(),
        "backbone": {
            **dataclasses.asdict(spec),
            "fingerprint": model.backbone.fingerprint(),
            "included": with_backbone,
        },
        "labels": model.space.to_json(),
        "calibration": model.calibration.to_json(),
    }


def write_model(
    folder: Path, model: Model, info: ModelInfo, *, with_backbone: bool, dtype: torch.dtype = torch.float32
) -> None:
    """Write config.json and model.safetensors into an existing folder."""
    tensors = {TRAINED + name: p.detach() for name, p in model.saved_tensors().items()}
    if with_backbone:
        tensors |= {CLIP + name: value for name, value in model.clip.state_dict().items()}
    tensors = {
        name: value.to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous().clone()
        for name, value in tensors.items()
    }
    save_file(tensors, folder / WEIGHTS, {"format": FORMAT})
    text = json.dumps(describe(model, info, with_backbone=with_backbone), indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", "utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model directory. Raises ModelFileError."""
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelFileError(f"{folder} is not a model: the file {CONFIG} is missing.") from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"The model file {file} cannot be read ({error}).") from None
    if isinstance(config, dict) and config.get("format") == OLD_FORMAT:
        try:
            return migrate_config(config, FORMAT)
        except (KeyError, TypeError, AttributeError, RefinerError) as error:
            raise ModelFileError(f"{file} is incomplete or damaged ({error!r}).") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise ModelFileError(f"{file} has the format {found!r}; this version reads {FORMAT!r}.")
    return config


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """model.safetensors of a model directory. Raises ModelFileError if it is missing or torn."""
    file = folder / WEIGHTS
    try:
        return migrate_tensors(load_file(file))
    except FileNotFoundError:
        raise ModelFileError(f"{folder} is not a model: the file {WEIGHTS} is missing.") from None
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"The weights {file} are damaged or cut short ({error}).", hint="Export or copy the model again."
        ) from None


def model_info(config: dict[str, Any]) -> ModelInfo:
    """The description part of config.json."""
    return ModelInfo(**{field.name: config[field.name] for field in dataclasses.fields(ModelInfo)})


def read_model(folder: Path) -> tuple[Model, ModelInfo]:
    """Build the model that a directory describes, on the CPU, in evaluation.

    Raises:
        ModelFileError: a file is missing, torn or does not fit, or the backbone is another one.
        FetchError: the backbone is not included and cannot be fetched.
    """
    config, tensors = read_config(folder), read_tensors(folder)
    try:
        spec = BackboneSpec(
            **{field.name: config["backbone"][field.name] for field in dataclasses.fields(BackboneSpec)}
        )
        space = LabelSpace.from_json(config["labels"])
        calibration = Calibration(**config["calibration"])
        info = model_info(config)
        settings = method_section(info.method).model_validate(config["model"])
        fingerprint, included = config["backbone"]["fingerprint"], config["backbone"]["included"]
    except (KeyError, TypeError, ValidationError, RefinerError) as error:
        raise ModelFileError(f"{folder / CONFIG} is incomplete or damaged ({error!r}).") from None
    backbone = stored_backbone(folder, spec, tensors, fingerprint, included=included)
    model = build_model(info.method, backbone, settings, space)
    saved = {name.removeprefix(TRAINED): value for name, value in tensors.items() if name.startswith(TRAINED)}
    load_saved_tensors(model, saved, folder / WEIGHTS)
    model.calibration = calibration
    return model.eval(), info


def stored_backbone(
    folder: Path, spec: BackboneSpec, tensors: dict[str, torch.Tensor], fingerprint: str, *, included: bool
) -> Backbone:
    """The backbone of a stored model: from the folder itself, or loaded by name and compared."""
    if included:
        state = {name.removeprefix(CLIP): value for name, value in tensors.items() if name.startswith(CLIP)}
        tokenizer = folder / "tokenizer"
        return build_backbone(spec, state, tokenizer if tokenizer.is_dir() else None)
    backbone = reload_backbone(spec)
    if backbone.fingerprint() != fingerprint:
        raise ModelFileError(
            f"The backbone {spec.name} ({spec.pretrained}) is not the one that {folder} was trained on.",
            hint="Its weights changed; train again, or export models where they were trained.",
        )
    return backbone


def load_saved_tensors(model: Model, saved: dict[str, torch.Tensor], source: Path) -> None:
    """Copy stored values into a model. Raises ModelFileError if they do not fit."""
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
