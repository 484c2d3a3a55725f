"""The frozen image tower, opened up: embed, run blocks one by one, finish.

Two towers are known: open_clip's own ViT and timm's (SigLIP and others). Both are seen through the
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


class Beside(Protocol):
    """What a block has beside its attention and its MLP: an adapter, or several for several tokens."""

    def attention(self, x: Tensor) -> Tensor: ...
    def mlp(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Look:
    """Who looks at whom in a block."""

    rows: int | None = None  # only the first so many tokens come out, which still look at all; None: all
    mask: Tensor | None = None  # N x N, added to the attention logits

    @property
    def first_rows(self) -> Tensor | None:
        """The mask of the tokens that come out."""
        return None if self.mask is None else self.mask[: self.rows]


ALL = Look()


class Tower(Protocol):
    """What both kinds of image tower offer."""

    width: int  # W
    depth: int  # blocks
    patch: int  # pixels a side
    prefix: int  # tokens before the patches (a class token, registers)
    pooled: int | None  # of how many first tokens the image vector is made; None: of all

    def embed(self, images: Tensor) -> Tensor:
        """``B x 3 x H x W`` preprocessed images -> ``B x N x W`` tokens before the first block."""

    def block(self, index: int, x: Tensor, beside: Beside | None, look: Look = ALL) -> Tensor:
        """One block with two branches beside attention and MLP, ``B x N x W`` -> ``B x N x W``.

        ``look`` may ask for the first rows alone and keep tokens from seeing others.
        """

    def finish(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens after the last block -> the image vector ``B x D`` and the read-out tokens ``B x N x W``."""

    def project(self, tokens: Tensor) -> Tensor:
        """Read-out tokens ``B x L x W`` -> joint space ``B x L x D``, the way the image vector goes."""

    def attention(self, index: int, x: Tensor) -> Tensor:
        """How much each token looks at each in one block, mean over heads, ``B x N x N``; rows sum to 1.

        Raises:
            ConfigError: the tower's attention keeps its weights to itself.
        """


class OpenClipTower:
    """open_clip's VisionTransformer."""

    def __init__(self, visual: open_clip.transformer.VisionTransformer) -> None:
        if visual.attn_pool is not None:
            raise ConfigError("Image towers with an attentional pooler (CoCa) are not supported.")
        self.visual = visual
        self.width = visual.conv1.out_channels
        self.depth = len(visual.transformer.resblocks)
        self.patch = visual.patch_size[0]
        self.prefix = 1
        self.pooled = 1 if visual.pool_type == "tok" else None

    # open_clip offers no public way to stop between two blocks, hence the private names.
    def embed(self, images: Tensor) -> Tensor:
        return self.visual._embeds(images)  # noqa: SLF001

    def block(self, index: int, x: Tensor, beside: Beside | None, look: Look = ALL) -> Tensor:
        block: Any = self.visual.transformer.resblocks[index]
        if beside is None and look is ALL:
            return block(x)
        h = block.ln_1(x)
        asking = h if look.rows is None else h[:, : look.rows]
        attended = (
            block.attn(asking, h, h, need_weights=False, attn_mask=look.first_rows)[0]
            if isinstance(block.attn, nn.MultiheadAttention)
            else block.ln_attn(block.attn(h, attn_mask=look.mask))[:, : look.rows]
        )
        x = x[:, : look.rows] + block.ls_1(attended)
        if beside is None:
            return x + block.ls_2(block.mlp(block.ln_2(x)))
        x = x + beside.attention(asking)
        h = block.ln_2(x)
        return x + block.ls_2(block.mlp(h)) + beside.mlp(h)

    def finish(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled, _ = self.visual._pool(x)  # noqa: SLF001
        return pooled @ self.visual.proj, self.visual.ln_post(x)

    def project(self, tokens: Tensor) -> Tensor:
        return tokens @ self.visual.proj

    def attention(self, index: int, x: Tensor) -> Tensor:
        block: Any = self.visual.transformer.resblocks[index]
        h = block.ln_1(x)
        if isinstance(block.attn, nn.MultiheadAttention):
            return block.attn(h, h, h, need_weights=True)[1]
        raise ConfigError(
            f"The backbone's attention ({type(block.attn).__name__}) does not tell what its tokens look at.",
            hint="Predict without --heatmaps.",
        )


class TimmTower:
    """timm's VisionTransformer inside open_clip's TimmModel."""

    def __init__(self, visual: open_clip.timm_model.TimmModel) -> None:
        self.visual = visual
        self.trunk: TimmViT = visual.trunk
        self.width = self.trunk.embed_dim
        self.depth = len(self.trunk.blocks)
        self.patch = self.trunk.patch_embed.patch_size[0]
        self.prefix = self.trunk.num_prefix_tokens
        self.pooled = 1 if self.trunk.global_pool == "token" else None

    def embed(self, images: Tensor) -> Tensor:
        x = self.trunk._pos_embed(self.trunk.patch_embed(images))  # noqa: SLF001
        return self.trunk.norm_pre(self.trunk.patch_drop(x))

    def block(self, index: int, x: Tensor, beside: Beside | None, look: Look = ALL) -> Tensor:
        block: Any = self.trunk.blocks[index]
        if beside is None and look is ALL:
            return block(x)
        h = block.norm1(x)
        x = x[:, : look.rows] + block.ls1(block.attn(h, attn_mask=look.mask)[:, : look.rows])
        if beside is None:
            return x + block.ls2(block.mlp(block.norm2(x)))
        x = x + beside.attention(h[:, : look.rows])
        h = block.norm2(x)
        return x + block.ls2(block.mlp(h)) + beside.mlp(h)

    def finish(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk.norm(x)
        return self.visual.head(self.trunk.forward_head(x)), x

    def project(self, tokens: Tensor) -> Tensor:
        return self.visual.head(self.trunk.head(tokens))

    def attention(self, index: int, x: Tensor) -> Tensor:
        block: Any = self.trunk.blocks[index]
        attn = block.attn
        q, k, _ = attn.qkv(block.norm1(x)).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return (attn.q_norm(q) * attn.scale @ attn.k_norm(k).transpose(-2, -1)).softmax(-1).mean(1)


def open_tower(visual: nn.Module) -> Tower:
    """See an open_clip image tower through :class:`Tower`. Raises ConfigError if it is no ViT."""
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        return OpenClipTower(visual)
    trunk = getattr(visual, "trunk", None)
    if isinstance(trunk, TimmViT) and all(
        isinstance(b, timm.models.vision_transformer.Block) for b in trunk.blocks
    ):
        return TimmTower(visual)
    kind = type(visual if trunk is None else trunk).__name__
    raise ConfigError(
        f"The backbone's image tower ({kind}) is no plain ViT.",
        hint="Choose a ViT such as ViT-L-14, ViT-B-32 or ViT-B-16-SigLIP.",
    )


def run(
    tower: Tower,
    x: Tensor,
    blocks: range,
    beside: Sequence[Beside],
    *,
    rows: int | None = None,
    mask: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """Some blocks in a row, ``B x N x W`` -> ``B x N x W``.

    Args:
        beside: of the tower's last blocks, as many as there are.
        rows: the tower's last block gives only the first so many tokens, which are the same ones.
        mask: ``N x N``, added to the attention logits of every block.
        recompute: keep no activations inside a block that has something beside it, and compute it again
            in the backward pass.
    """
    first = tower.depth - len(beside)
    for index in blocks:
        own = beside[index - first] if index >= first else None
        wanted = rows if index == tower.depth - 1 else None
        look = ALL if wanted is None and mask is None else Look(wanted, mask)
        if recompute and own is not None and torch.is_grad_enabled():
            x = checkpoint(tower.block, index, x, own, look, use_reentrant=False)
        else:
            x = tower.block(index, x, own, look)
    return x
