"""Model directories of version 0.1.0 (format ``refiner.model/1``), read as the present format.

Only names changed: settings of the method, and the first part of some tensors' names.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from refiner_cli.config import method_section
from refiner_cli.settings import RENAMED_KEYS

OLD_FORMAT = "refiner.model/1"
RENAMED_TENSORS = {
    "learned.concepts.read_outs.": "trained.visual_refinement.pools.",
    "learned.concepts.": "trained.visual_refinement.",
    "learned.fusion.": "trained.image_to_text.",
    "learned.hubs.": "trained.hubness.",
    "learned.": "trained.",
}


def migrate_config(config: dict[str, Any], new_format: str) -> dict[str, Any]:
    """The content of an old config.json as the present format has it."""
    known = method_section(config["method"]).model_fields
    settings = {
        RENAMED_KEYS.get(f"model.{key}", f"model.{key}").removeprefix("model."): value
        for key, value in config["model"].items()
    }
    kept = {key: value for key, value in settings.items() if key in known}  # old sections had every key
    return {**config, "format": new_format, "model": kept}


def migrate_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an old model.safetensors under their present names."""
    return {renamed(name): value for name, value in tensors.items()}


def renamed(name: str) -> str:
    """The present name of a tensor."""
    for old, new in RENAMED_TENSORS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
