"""Model directories of earlier formats, read as the present one, or refused where their parts are gone.

With ``refiner.model/3`` Refiner has other queries and other image-to-text maps: an earlier model of this
method cannot give the rows that it gave, those of the other methods can. Up to ``/2`` the shifted views were
a setting of the method and are calibration now; in ``/1`` (version 0.1.0) some names were others.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from refiner_cli.config import method_section
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.errors import ModelFileError
from refiner_cli.settings import RENAMED_KEYS

OLD_FORMATS = ("refiner.model/1", "refiner.model/2")


def migrate_config(config: dict[str, Any], new_format: str, file: object) -> dict[str, Any]:
    """The content of an earlier config.json as the present format has it.

    Raises ModelFileError for a Refiner of an earlier design.
    """
    if config["method"] == "refiner":
        raise ModelFileError(
            f"{file} holds a Refiner of an earlier design ({config['format']}), whose queries and maps this "
            "version no longer has.",
            hint=f"Train it again, or read it with the refiner that wrote it ({config['refiner']!s:.40}).",
        )
    known = method_section(config["method"]).model_fields
    renamed_keys = {key: RENAMED_KEYS.get(f"model.{key}", f"model.{key}") for key in config["model"]}
    settings = {new: config["model"][old] for old, new in renamed_keys.items()}
    kept = {key: settings[f"model.{key}"] for key in known if f"model.{key}" in settings}
    plain = Calibration()
    calibration = {
        **config["calibration"],
        "hubness_strength": 0.0,  # the other methods had no correction and no interpolation
        "hubness_softness": plain.hubness_softness,
        "wise_ft_alpha": plain.wise_ft_alpha,
        "tta_shifts": settings.get("calibration.tta_shifts", plain.tta_shifts),
    }
    return {**config, "format": new_format, "model": kept, "calibration": calibration}


def migrate_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model.safetensors under their present names."""
    old, new = "learned.", "trained."  # of refiner.model/1
    return {
        new + name.removeprefix(old) if name.startswith(old) else name: value
        for name, value in tensors.items()
    }
