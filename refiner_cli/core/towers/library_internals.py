"""The private functions of open_clip and timm that the towers call, each in one place.

Neither library has a public way to stop between two blocks. What these functions compute was checked with
the versions in :data:`CHECKED`; the test of this module compares them with the libraries' own encoders.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn

from refiner_cli.errors import EnvironmentLacksError

CHECKED = {"open_clip_torch": "3.3.0", "timm": "1.0.31"}


def private_method(module: nn.Module, name: str, package: str) -> Callable[..., Any]:
    """A private method of a library's module. Raises EnvironmentLacksError if this version has none."""
    method = getattr(module, name, None)
    if method is None:
        raise EnvironmentLacksError(
            f"{type(module).__name__} of the installed {package} {version(package)} has no {name},"
            " which refiner uses.",
            hint=f"Run: pip install {package}=={CHECKED[package]}",
        )
    return method


def open_clip_embed(visual: nn.Module, images: Tensor) -> Tensor:
    """Images -> tokens before the first block of open_clip's VisionTransformer."""
    return private_method(visual, "_embeds", "open_clip_torch")(images)


def open_clip_pool(visual: nn.Module, tokens: Tensor) -> Tensor:
    """Tokens after the last block of open_clip's VisionTransformer -> the pooled, normalised vector."""
    pooled, _ = private_method(visual, "_pool", "open_clip_torch")(tokens)
    return pooled


def timm_positions(trunk: nn.Module, patches: Tensor) -> Tensor:
    """Patches -> tokens with class token and positions of timm's VisionTransformer or Eva."""
    tokens = private_method(trunk, "_pos_embed", "timm")(patches)
    return tokens[0] if isinstance(tokens, tuple) else tokens  # Eva also returns its rotary embeddings
