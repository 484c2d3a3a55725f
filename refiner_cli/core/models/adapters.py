"""Bottleneck adapters: small trainable branches parallel to the frozen blocks of an image tower."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from refiner_cli.core.towers.image import ImageTower, run_blocks


class Adapter(nn.Module):
    """``W -> r -> W`` with ReLU between; the up-projection starts at zero, so the branch starts as zero.

    Args:
        width: W.
        dim: r.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, dim)
        self.up = nn.Linear(dim, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``... x W`` -> ``... x W``."""
        return self.up(torch.relu(self.down(x)))


class BlockAdapter(nn.Module):
    """The two adapters of one block: parallel to its attention and to its MLP."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.attention = Adapter(width, dim)
        self.mlp = Adapter(width, dim)


class AdapterStack(nn.ModuleList):
    """The adapters of an image tower's last blocks, and the way of an image through the adapted tower.

    Args:
        tower: the frozen image tower; it is not part of the module.
        count: m, how many of its last blocks carry adapters.
        dim: r.
    """

    def __init__(self, tower: ImageTower, count: int, dim: int) -> None:
        super().__init__([BlockAdapter(tower.width, dim) for _ in range(count)])
        self.first_block = tower.depth - count  # of those that carry adapters

    def blocks(self) -> list[BlockAdapter]:
        return [cast("BlockAdapter", adapter) for adapter in self]

    def encode(
        self,
        tower: ImageTower,
        x: Tensor,
        blocks: range,
        *,
        rows: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> Tensor:
        """Tokens through some blocks of the adapted tower, ``B x N x W`` -> ``B x N x W``.

        Args:
            rows: how many of the first tokens are needed after the tower's last block; None: all.
        """
        return run_blocks(
            tower, x, blocks, self.blocks(), rows=rows, gradient_checkpointing=gradient_checkpointing
        )
