"""The backbone of a stored model: from its own folder, or loaded by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import torch

from refiner_cli.core.model_io.schema import CLIP, CONFIG, StoredBackbone
from refiner_cli.core.towers import tiny
from refiner_cli.core.towers.architectures import find_architecture
from refiner_cli.core.towers.backbone import Backbone, BackboneSpec, build_backbone, reload_backbone
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
        return build_backbone(spec, state, tokenizer if tokenizer.is_dir() else None)
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
    if spec.name == tiny.NAME or spec.name in open_clip.list_models():
        known = find_architecture(spec.name).config
        own = {key: value for key, value in spec.model.items() if key != "quick_gelu"}
        if own != {key: value for key, value in known.items() if key != "quick_gelu"}:
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
