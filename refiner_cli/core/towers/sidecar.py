"""A configuration beside a weights file: open_clip's, that of the transformers library, or refiner's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from refiner_cli.core.towers.architectures import CONFIG_FILE, check_preprocess
from refiner_cli.core.towers.weights_profile import WeightsProfile

MODEL_CONFIG, PREPROCESSOR_CONFIG = "config.json", "preprocessor_config.json"  # of transformers
TOWER_SIZES = {"hidden_size": "width", "num_hidden_layers": "layers", "patch_size": "patch_size"}
BILINEAR = 2  # Pillow's number


def read_sidecar(file: Path, model: dict[str, Any]) -> tuple[WeightsProfile, str]:
    """What the configuration beside a weights file says, and a sentence on where that was found.

    Args:
        file: the weights.
        model: the model configuration that was chosen; a configuration of another model is ignored.

    Raises:
        ConfigError: a preprocessing value is impossible.
    """
    for beside in (file.with_name(CONFIG_FILE), file.with_name(MODEL_CONFIG)):
        content = read_object(beside)
        own, preprocess = content.get("model_cfg"), content.get("preprocess_cfg")
        backbone = content.get("backbone")  # of a model that refiner exported
        if own is None and isinstance(backbone, dict):
            own, preprocess = backbone.get("model"), backbone.get("preprocess")
        if preprocess is not None:
            check_preprocess(preprocess, beside)
        if isinstance(own, dict) and is_same_model(own, model):
            activation = bool(own.get("quick_gelu", False))
            return WeightsProfile(activation, preprocess), f"activation and preprocessing from {beside}"
        if own is None and preprocess is not None:
            return WeightsProfile(None, preprocess), f"preprocessing from {beside}"
        if content.get("model_type") == "clip" and is_same_tower(content.get("vision_config"), model):
            profile = WeightsProfile(has_quick_gelu(content), transformers_preprocess(file))
            return profile, f"activation from {beside}"
    return WeightsProfile(), ""


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def is_same_model(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two of open_clip's configurations describe towers of the same size."""
    first, second = one.get("vision_cfg"), other["vision_cfg"]
    return (
        isinstance(first, dict)
        and one.get("embed_dim") == other["embed_dim"]
        and all(
            first.get(key) == second.get(key) for key in ("width", "layers", "patch_size", "timm_model_name")
        )
    )


def is_same_tower(vision: Any, model: dict[str, Any]) -> bool:
    """Whether transformers' image tower has the sizes of open_clip's, as far as both configurations say.

    The image size may differ: position embeddings of another one are interpolated.
    """
    theirs, ours = vision if isinstance(vision, dict) else {}, model["vision_cfg"]
    return all(
        theirs[key] == ours[name] for key, name in TOWER_SIZES.items() if key in theirs and name in ours
    )


def has_quick_gelu(config: dict[str, Any]) -> bool:
    """Whether transformers' CLIP runs with QuickGELU, which is its default."""
    vision = config.get("vision_config")
    return not isinstance(vision, dict) or vision.get("hidden_act", "quick_gelu") == "quick_gelu"


def transformers_preprocess(file: Path) -> dict[str, Any] | None:
    """open_clip's preprocessing keys from transformers' preprocessor_config.json."""
    beside = file.with_name(PREPROCESSOR_CONFIG)
    content = read_object(beside)
    if "image_mean" not in content or "image_std" not in content:
        return None
    preprocess = {
        "mean": content["image_mean"],
        "std": content["image_std"],
        "interpolation": "bilinear" if content.get("resample") == BILINEAR else "bicubic",
        "resize_mode": "shortest" if content.get("do_center_crop", True) else "squash",
    }
    check_preprocess(preprocess, beside)
    return preprocess
