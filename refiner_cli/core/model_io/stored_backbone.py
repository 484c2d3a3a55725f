"""The backbone of a stored model: from its own folder, or loaded by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import torch

from refiner_cli.core.model_io.schema import CLIP, CONFIG, StoredBackbone
from refiner_cli.core.towers import tiny
from refiner_cli.core.towers.architectures import contrastive_part, find_architecture, split_language
from refiner_cli.core.towers.backbone import Backbone, BackboneSpec, build_backbone, reload_backbone
from refiner_cli.core.towers.transformers_config import SIZES
from refiner_cli.errors import ModelFileError


def stored_backbone(
    folder: Path, config: dict[str, Any], stored: StoredBackbone, tensors: dict[str, torch.Tensor]
) -> Backbone:
    """The backbone of a stored model: from the folder itself, or loaded by name and compared."""
    described = config["backbone"]
    spec = BackboneSpec(
        stored.name, stored.pretrained, described["model"], described["preprocess"], stored.seed
    )
    if stored.included:
        state = {name.removeprefix(CLIP): value for name, value in tensors.items() if name.startswith(CLIP)}
        count = sum(value.numel() for value in state.values())
        if stored.model.parameters() > 2 * count + 1e6:
            raise ModelFileError(
                f"{folder / CONFIG} does not fit its weights: the backbone would be far larger than they are."
            )
        tokenizer = folder / "tokenizer"
        backbone = build_backbone(spec, state, tokenizer if tokenizer.is_dir() else None)
        return replace(backbone, named_fingerprint=stored.fingerprint)
    with network_for(spec, folder):
        backbone = reload_backbone(spec)
    if backbone.fingerprint() != stored.fingerprint:
        raise ModelFileError(
            f"The backbone {spec.name} ({spec.pretrained}) is not the one that {folder} was trained on.",
            hint="Its weights changed; train again, or export models where they were trained.",
        )
    return backbone


@contextlib.contextmanager
def network_for(spec: BackboneSpec, folder: Path) -> Iterator[None]:
    """Let a stored model download what open_clip's own list names; anything else must be on this machine.

    Raises ModelFileError if the description is not that of the model of its name.
    """
    name, _ = split_language(spec.name)
    if name == tiny.NAME or name in open_clip.list_models():
        known = contrastive_part(find_architecture(spec.name).config)
        if by_name(spec.model) != by_name(known):
            raise ModelFileError(
                f"{folder / CONFIG} is damaged: its backbone is not the {spec.name} it names."
            )
        yield
        return
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def by_name(config: dict[str, Any]) -> dict[str, Any]:
    """What a model's name says of its configuration: not the activation, nor a text tower's sizes."""
    text = {key: value for key, value in config["text_cfg"].items() if key != SIZES}
    added = {"quick_gelu", "custom_text"} if "hf_model_name" in text else {"quick_gelu"}
    return {**{key: value for key, value in config.items() if key not in added}, "text_cfg": text}
