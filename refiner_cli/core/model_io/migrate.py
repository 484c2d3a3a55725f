"""Model directories of older formats, read as the present one.

Up to ``refiner.model/2`` three values that are calibration now were settings of the method. In
``refiner.model/1`` (version 0.1.0) some settings and tensors had other names.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from refiner_cli.config import method_section
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.settings import RENAMED_KEYS

OLD_FORMATS = ("refiner.model/1", "refiner.model/2")
HUBNESS = {False: 0.0, True: 0.5}  # the strength of the correction when it was a switch
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
    renamed_keys = {key: RENAMED_KEYS.get(f"model.{key}", f"model.{key}") for key in config["model"]}
    settings = {new: config["model"][old] for old, new in renamed_keys.items()}
    kept = {key: settings[f"model.{key}"] for key in known if f"model.{key}" in settings}
    plain = Calibration()
    own = settings if config["method"] == "refiner" else {}  # other methods ignored theirs
    calibration = {
        **config["calibration"],
        "hubness_strength": HUBNESS[own.get("calibration.hubness_strength", False)],
        "hubness_softness": plain.hubness_softness,
        "wise_ft_alpha": own.get("calibration.wise_ft_alpha", plain.wise_ft_alpha),
        "tta_shifts": settings.get("calibration.tta_shifts", plain.tta_shifts),
    }
    return {**config, "format": new_format, "model": kept, "calibration": calibration}


def migrate_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an old model.safetensors under their present names."""
    return {renamed(name): value for name, value in tensors.items()}


def renamed(name: str) -> str:
    """The present name of a tensor."""
    for old, new in RENAMED_TENSORS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
