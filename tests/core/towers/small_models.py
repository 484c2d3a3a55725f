"""Shrunken models and their weights in every form in which weights are published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from refiner_cli.core.towers.backbone import Backbone

VISION = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CONFIG: dict[str, Any] = {"embed_dim": 48, "vision_cfg": VISION, "text_cfg": TEXT}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
StateDict = dict[str, Tensor]


def shrink(monkeypatch: pytest.MonkeyPatch, name: str = "ViT-B-32", **changes: Any) -> None:
    """Let an open_clip name stand for a small model; its tags stay."""
    known = open_clip.get_model_config

    def config(asked: str) -> dict[str, Any] | None:
        return {**CONFIG, **changes} if asked == name else known(asked)

    monkeypatch.setattr(open_clip, "get_model_config", config)


def weights(*, seed: int = 0, **changes: Any) -> StateDict:
    """Random weights of the small model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return open_clip.CLIP(**{**CONFIG, **changes}).state_dict()


def serve(monkeypatch: pytest.MonkeyPatch, file: Path) -> list[Any]:
    """Let every download of a tag give ``file``; the list fills with what was asked for."""
    asked: list[Any] = []

    def download(entry: Any) -> str:
        asked.append(entry)
        return str(file)

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    return asked


def forbid_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail on any download of weights, configurations or tokenizers."""

    def download(*parts: object, **options: object) -> None:
        raise AssertionError(f"something is downloaded: {parts}")

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_hf", download)
    monkeypatch.setattr("socket.socket.connect", download)


def activation(backbone: Backbone) -> str:
    return type(backbone.clip.visual.transformer.resblocks[0].mlp.gelu).__name__


def image_vectors(backbone: Backbone) -> Tensor:
    with torch.no_grad():
        return backbone.clip.encode_image(IMAGES)


def archive(state: StateDict, file: Path) -> None:
    """A TorchScript archive as OpenAI publishes them: half precision, three numbers beside the weights."""
    root = nn.Module()
    extras = {"input_resolution": 32, "context_length": 16, "vocab_size": 49408}
    for name, value in state.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]  # type: ignore[assignment]
        module.register_parameter(last, nn.Parameter(value.half(), requires_grad=False))
    for name, number in extras.items():
        root.register_buffer(name, torch.tensor(number))
    script: Callable[..., Any] = torch.jit.script
    script(root).save(str(file))
