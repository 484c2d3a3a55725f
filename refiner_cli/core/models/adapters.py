"""Bottleneck adapters: small trainable branches beside the frozen blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Adapter(nn.Module):
    """``W -> r -> W`` with ReLU between; the way up starts at zero, so it starts as nothing.

    Args:
        width: W.
        inner: r.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``... x W`` -> ``... x W``."""
        return self.up(torch.relu(self.down(x)))


class BlockAdapter(nn.Module):
    """The two adapters of one block: beside its attention and beside its MLP."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.attention = Adapter(width, inner)
        self.mlp = Adapter(width, inner)
