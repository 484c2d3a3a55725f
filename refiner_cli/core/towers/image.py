"""The frozen image tower in three steps: embed, run blocks one by one, pool and project.

Every kind of ViT is used through the same steps, so that adapters can sit inside the last blocks and the
blocks below them can run without a graph. :func:`~refiner_cli.core.towers.open_tower.open_image_tower`
wraps the tower of a model. Shapes: ``B`` images, ``N`` tokens (class token and ``L`` patches), ``W``
visual width, ``D`` joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class ParallelAdapter(Protocol):
    """Adapters run in parallel with a block's attention and its MLP."""

    def attention(self, x: Tensor) -> Tensor: ...
    def mlp(self, x: Tensor) -> Tensor: ...


class RawInputAdapter:
    """Base of adapters that read a block's tokens before its norms; all others read them after."""


def adapter_input(adapters: ParallelAdapter, raw: Tensor, normalised: Tensor) -> Tensor:
    """What the adapters of a block read: its tokens before or after the norm."""
    return raw if isinstance(adapters, RawInputAdapter) else normalised


@dataclass(frozen=True)
class AttentionSpec:
    """Which tokens a block keeps, and its attention mask."""

    num_outputs: int | None = None  # keep only the first tokens, which still attend to all; None: all
    mask: Tensor | None = None  # N x N, added to the attention logits

    @property
    def output_mask(self) -> Tensor | None:
        """The mask's rows of the tokens that are kept."""
        return None if self.mask is None else self.mask[: self.num_outputs]


FULL_ATTENTION = AttentionSpec()


class ImageTower(Protocol):
    """The interface of every kind of image tower."""

    width: int  # W
    depth: int  # blocks
    patch_size: int  # pixels per side, in the image
    num_prefix_tokens: int  # before the patches (a class token, registers)
    num_pooled_tokens: int | None  # how many of the first tokens the image vector needs; None: all

    def embed(self, images: Tensor) -> Tensor:
        """``B x 3 x H x W`` preprocessed images -> ``B x N x W`` tokens before the first block."""

    def block(
        self, index: int, x: Tensor, adapters: ParallelAdapter | None, spec: AttentionSpec = FULL_ATTENTION
    ) -> Tensor:
        """One block with adapters parallel to attention and MLP, ``B x N x W`` -> ``B x N x W``."""

    def token_values(self, index: int, x: Tensor) -> Tensor:
        """What the attention of a block reads from each token alone, ``B x N x W`` -> ``B x N x W``.

        Without the residual stream and without a mixture of tokens, each of these is local (Lan et al.,
        ClearCLIP, ECCV 2024).
        """

    def pool_and_project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens after the last block -> the image vector ``B x D`` and the read-out tokens ``B x N x W``."""

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """Read-out tokens ``B x L x W`` -> joint space ``B x L x D``, the way the image vector goes."""

    def attention_weights(self, index: int, x: Tensor) -> Tensor:
        """How much each token attends to each in one block, mean over heads, ``B x N x N``; rows sum to 1.

        Raises:
            ConfigError: the tower's attention does not return its weights.
        """


def own_token_mask(x: Tensor) -> Tensor:
    """An attention mask under which each token attends to itself alone, ``N x N``, for ``B x N x W``."""
    mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, device=x.device, dtype=x.dtype)
    return mask.fill_diagonal_(0)


def run_blocks(
    tower: ImageTower,
    x: Tensor,
    blocks: range,
    adapters: Sequence[ParallelAdapter],
    *,
    rows: int | None = None,
    mask: Tensor | None = None,
    gradient_checkpointing: bool = False,
) -> Tensor:
    """Consecutive blocks, ``B x N x W`` -> ``B x N x W``.

    Args:
        adapters: those of the tower's last blocks, one per block.
        rows: how many of the first tokens the tower's last block keeps; None: all.
        mask: ``N x N``, added to the attention logits of every block.
        gradient_checkpointing: keep no activations inside a block that has adapters; the backward pass
            computes them again.
    """
    first = tower.depth - len(adapters)
    for index in blocks:
        own = adapters[index - first] if index >= first else None
        kept = rows if index == tower.depth - 1 else None
        spec = FULL_ATTENTION if kept is None and mask is None else AttentionSpec(kept, mask)
        if gradient_checkpointing and own is not None and torch.is_grad_enabled():
            x = checkpoint(tower.block, index, x, own, spec, use_reentrant=False)
        else:
            x = tower.block(index, x, own, spec)
    return x
