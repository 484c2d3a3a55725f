"""The frozen image tower, opened up: embed, run blocks one by one, pool and project.

Two kinds are supported: open_clip's own ViT and timm's (SigLIP and others). Both are used through the
same three steps, so that adapters can sit inside the last blocks and the blocks below them can run
without a graph. Shapes: ``B`` images, ``N`` tokens (class token and ``L`` patches), ``W`` visual
width, ``D`` joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import open_clip
import timm
import torch
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from refiner_cli.errors import ConfigError


class ParallelAdapter(Protocol):
    """Adapters run in parallel with a block's attention and its MLP."""

    def attention(self, x: Tensor) -> Tensor: ...
    def mlp(self, x: Tensor) -> Tensor: ...


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
    """The interface of both kinds of image tower."""

    width: int  # W
    depth: int  # blocks
    patch_size: int  # pixels per side
    num_prefix_tokens: int  # before the patches (a class token, registers)
    num_pooled_tokens: int | None  # how many of the first tokens the image vector needs; None: all

    def embed(self, images: Tensor) -> Tensor:
        """``B x 3 x H x W`` preprocessed images -> ``B x N x W`` tokens before the first block."""

    def block(
        self, index: int, x: Tensor, adapters: ParallelAdapter | None, spec: AttentionSpec = FULL_ATTENTION
    ) -> Tensor:
        """One block with adapters parallel to attention and MLP, ``B x N x W`` -> ``B x N x W``."""

    def pool_and_project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens after the last block -> the image vector ``B x D`` and the read-out tokens ``B x N x W``."""

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """Read-out tokens ``B x L x W`` -> joint space ``B x L x D``, the way the image vector goes."""

    def attention_weights(self, index: int, x: Tensor) -> Tensor:
        """How much each token attends to each in one block, mean over heads, ``B x N x N``; rows sum to 1.

        Raises:
            ConfigError: the tower's attention does not return its weights.
        """


class OpenClipTower:
    """open_clip's VisionTransformer."""

    def __init__(self, visual: open_clip.transformer.VisionTransformer) -> None:
        if visual.attn_pool is not None:
            raise ConfigError("Image towers with an attentional pooler (CoCa) are not supported.")
        self.visual = visual
        self.width = visual.conv1.out_channels
        self.depth = len(visual.transformer.resblocks)
        self.patch_size = visual.patch_size[0]
        self.num_prefix_tokens = 1
        self.num_pooled_tokens = 1 if visual.pool_type == "tok" else None

    # open_clip has no public way to stop between two blocks, hence its private methods.
    def embed(self, images: Tensor) -> Tensor:
        return self.visual._embeds(images)  # noqa: SLF001

    def block(
        self, index: int, x: Tensor, adapters: ParallelAdapter | None, spec: AttentionSpec = FULL_ATTENTION
    ) -> Tensor:
        block: Any = self.visual.transformer.resblocks[index]
        if adapters is None and spec is FULL_ATTENTION:
            return block(x)
        h = block.ln_1(x)
        kept = h if spec.num_outputs is None else h[:, : spec.num_outputs]
        attended = (
            block.attn(kept, h, h, need_weights=False, attn_mask=spec.output_mask)[0]
            if isinstance(block.attn, nn.MultiheadAttention)
            else block.ln_attn(block.attn(h, attn_mask=spec.mask))[:, : spec.num_outputs]
        )
        x = x[:, : spec.num_outputs] + block.ls_1(attended)
        if adapters is None:
            return x + block.ls_2(block.mlp(block.ln_2(x)))
        x = x + adapters.attention(kept)
        h = block.ln_2(x)
        return x + block.ls_2(block.mlp(h)) + adapters.mlp(h)

    def pool_and_project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled, _ = self.visual._pool(x)  # noqa: SLF001
        return pooled @ self.visual.proj, self.visual.ln_post(x)

    def project_tokens(self, tokens: Tensor) -> Tensor:
        return tokens @ self.visual.proj

    def attention_weights(self, index: int, x: Tensor) -> Tensor:
        block: Any = self.visual.transformer.resblocks[index]
        h = block.ln_1(x)
        if isinstance(block.attn, nn.MultiheadAttention):
            return block.attn(h, h, h, need_weights=True)[1]
        raise ConfigError(
            f"The backbone's attention ({type(block.attn).__name__}) does not return its attention weights.",
            hint="Predict without --heatmaps.",
        )


class TimmTower:
    """timm's VisionTransformer inside open_clip's TimmModel."""

    def __init__(self, visual: open_clip.timm_model.TimmModel) -> None:
        self.visual = visual
        self.trunk: TimmViT = visual.trunk
        self.width = self.trunk.embed_dim
        self.depth = len(self.trunk.blocks)
        self.patch_size = self.trunk.patch_embed.patch_size[0]
        self.num_prefix_tokens = self.trunk.num_prefix_tokens
        self.num_pooled_tokens = 1 if self.trunk.global_pool == "token" else None

    def embed(self, images: Tensor) -> Tensor:
        x = self.trunk._pos_embed(self.trunk.patch_embed(images))  # noqa: SLF001
        return self.trunk.norm_pre(self.trunk.patch_drop(x))

    def block(
        self, index: int, x: Tensor, adapters: ParallelAdapter | None, spec: AttentionSpec = FULL_ATTENTION
    ) -> Tensor:
        block: Any = self.trunk.blocks[index]
        if adapters is None and spec is FULL_ATTENTION:
            return block(x)
        h = block.norm1(x)
        x = x[:, : spec.num_outputs] + block.ls1(block.attn(h, attn_mask=spec.mask)[:, : spec.num_outputs])
        if adapters is None:
            return x + block.ls2(block.mlp(block.norm2(x)))
        x = x + adapters.attention(h[:, : spec.num_outputs])
        h = block.norm2(x)
        return x + block.ls2(block.mlp(h)) + adapters.mlp(h)

    def pool_and_project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk.norm(x)
        return self.visual.head(self.trunk.forward_head(x)), x

    def project_tokens(self, tokens: Tensor) -> Tensor:
        return self.visual.head(self.trunk.head(tokens))

    def attention_weights(self, index: int, x: Tensor) -> Tensor:
        block: Any = self.trunk.blocks[index]
        attn = block.attn
        q, k, _ = attn.qkv(block.norm1(x)).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return (attn.q_norm(q) * attn.scale @ attn.k_norm(k).transpose(-2, -1)).softmax(-1).mean(1)


def open_image_tower(visual: nn.Module) -> ImageTower:
    """Wrap the image tower of an open_clip model. Raises ConfigError if it is not a plain ViT."""
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        return OpenClipTower(visual)
    trunk = getattr(visual, "trunk", None)
    if isinstance(trunk, TimmViT) and all(
        isinstance(b, timm.models.vision_transformer.Block) for b in trunk.blocks
    ):
        return TimmTower(visual)
    kind = type(visual if trunk is None else trunk).__name__
    raise ConfigError(
        f"The backbone's image tower ({kind}) is not a plain ViT.",
        hint="Choose a ViT such as ViT-L-14, ViT-B-32 or ViT-B-16-SigLIP.",
    )


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
