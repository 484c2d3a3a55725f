"""Frozen weights in half precision: cast once instead of in every step, and half the memory.

Mixed precision casts the inputs and weights of matrix products and convolutions, so these weights alone are
cast; results are the same, bit for bit. Norms, embeddings and everything that is trained stay float32. The
towers can then be used under autocast alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from refiner_cli.core.towers.backbone import Backbone

MATRICES = (nn.Linear, nn.Conv2d)
BARE = ("in_proj_weight", "in_proj_bias", "proj", "text_projection")  # matrices outside such a module


def cast_frozen(backbone: Backbone, precision: torch.dtype) -> Backbone:
    """The backbone for autocast in ``precision``; its fingerprint stays that of the float32 weights."""
    if precision == torch.float32:
        return backbone
    known = backbone.fingerprint()
    for module in backbone.clip.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, MATRICES) or name in BARE:
                parameter.data = parameter.data.to(precision)
    return replace(backbone, float32_fingerprint=known)
