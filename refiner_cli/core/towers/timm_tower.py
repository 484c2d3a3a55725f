"""timm's ViTs as image towers: its VisionTransformer (SigLIP, ViTamin) and its Eva (EVA, PE-Core)."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva, EvaBlockPostNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from refiner_cli.core.towers.image import (
    FULL_ATTENTION,
    AttentionSpec,
    ParallelAdapter,
    adapter_input,
    own_token_mask,
)
from refiner_cli.core.towers.library_internals import timm_positions


class TimmTrunk:
    """What both kinds have in common: sizes, and the way from the last block to the joint space."""

    def __init__(self, visual: open_clip.timm_model.TimmModel) -> None:
        self.visual = visual
        self.trunk: VisionTransformer | Eva = visual.trunk
        self.width = self.trunk.embed_dim
        self.depth = len(self.trunk.blocks)
        # Not patch_embed.patch_size: MobileCLIP and ViTamin cut patches from a feature map.
        self.patch_size = int(self.trunk.patch_embed.feat_ratio())
        self.num_prefix_tokens = self.trunk.num_prefix_tokens
        self.num_pooled_tokens = 1 if self.trunk.global_pool == "token" else None

    def pool_and_project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk.norm(x)
        return self.visual.head(self.trunk.forward_head(x)), x

    def project_tokens(self, tokens: Tensor) -> Tensor:
        # As if an image consisted of one token: pooling then reads it alone, by attention as well.
        alone = tokens.flatten(0, 1)[:, None].expand(-1, 1 + self.num_prefix_tokens, -1)
        return self.visual.head(self.trunk.forward_head(alone)).unflatten(0, tokens.shape[:2])


class TimmTower(TimmTrunk):
    """timm's VisionTransformer inside open_clip's TimmModel."""

    trunk: VisionTransformer

    def embed(self, images: Tensor) -> Tensor:
        x = timm_positions(self.trunk, self.trunk.patch_embed(images))
        return self.trunk.norm_pre(self.trunk.patch_drop(x))

    def block(
        self, index: int, x: Tensor, adapters: ParallelAdapter | None, spec: AttentionSpec = FULL_ATTENTION
    ) -> Tensor:
        block: Any = self.trunk.blocks[index]
        if adapters is None and spec is FULL_ATTENTION:
            return block(x)
        h = block.norm1(x)
        raw = x[:, : spec.num_outputs]
        x = raw + block.ls1(block.attn(h, attn_mask=spec.mask)[:, : spec.num_outputs])
        if adapters is None:
            return x + block.ls2(block.mlp(block.norm2(x)))
        x = x + adapters.attention(adapter_input(adapters, raw, h[:, : spec.num_outputs]))
        h = block.norm2(x)
        return x + block.ls2(block.mlp(h)) + adapters.mlp(adapter_input(adapters, x, h))

    def token_values(self, index: int, x: Tensor) -> Tensor:
        block: Any = self.trunk.blocks[index]
        return block.ls1(block.attn(block.norm1(x), attn_mask=own_token_mask(x)))

    def attention_weights(self, index: int, x: Tensor) -> Tensor:
        block: Any = self.trunk.blocks[index]
        attn = block.attn
        q, k, _ = attn.qkv(block.norm1(x)).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return (attn.q_norm(q) * attn.scale @ attn.k_norm(k).transpose(-2, -1)).softmax(-1).mean(1)


class EvaTower(TimmTrunk):
    """timm's Eva inside open_clip's TimmModel: its attention turns queries and keys by their position."""

    trunk: Eva

    def embed(self, images: Tensor) -> Tensor:
        return self.trunk.norm_pre(timm_positions(self.trunk, self.trunk.patch_embed(images)))

    def rotation(self, count: int) -> Tensor | None:
        """The rotary embeddings of ``count`` tokens, all but the prefix tokens, ``x 2 dim`` (sine, cosine).

        Only the last ``L`` are patches; tokens in front of the image's own are not turned.
        """
        rope: Any = self.trunk.rope
        if rope is None:
            return None
        patches: Tensor = rope.get_embed(shape=self.trunk.patch_embed.grid_size)  # L x 2 dim
        extra = count - self.num_prefix_tokens - len(patches)
        if extra == 0:
            return patches
        half = patches.shape[1] // 2
        still = torch.cat([patches.new_zeros(extra, half), patches.new_ones(extra, half)], 1)
        return torch.cat([still, patches])

    def block(
        self, index: int, x: Tensor, adapters: ParallelAdapter | None, spec: AttentionSpec = FULL_ATTENTION
    ) -> Tensor:
        block: Any = self.trunk.blocks[index]
        rope = self.rotation(x.shape[1])
        if adapters is None and spec is FULL_ATTENTION:
            return block(x, rope=rope)
        norm_last = isinstance(block, EvaBlockPostNorm)
        first, second = getattr(block, "gamma_1", None), getattr(block, "gamma_2", None)  # layer scales
        h = x if norm_last else block.norm1(x)
        attended = block.attn(h, rope=rope, attn_mask=spec.mask)[:, : spec.num_outputs]
        attended = block.norm1(attended) if norm_last else attended if first is None else first * attended
        raw = x[:, : spec.num_outputs]
        x = raw + attended
        if adapters is not None:
            x = x + adapters.attention(adapter_input(adapters, raw, h[:, : spec.num_outputs]))
        raw, h = x, x if norm_last else block.norm2(x)
        widened = block.mlp(h)
        x = x + (block.norm2(widened) if norm_last else widened if second is None else second * widened)
        return x if adapters is None else x + adapters.mlp(adapter_input(adapters, raw, h))

    def token_values(self, index: int, x: Tensor) -> Tensor:
        block: Any = self.trunk.blocks[index]
        norm_last, scale = isinstance(block, EvaBlockPostNorm), getattr(block, "gamma_1", None)
        h = x if norm_last else block.norm1(x)
        read = block.attn(h, rope=self.rotation(x.shape[1]), attn_mask=own_token_mask(x))
        return block.norm1(read) if norm_last else read if scale is None else scale * read

    def attention_weights(self, index: int, x: Tensor) -> Tensor:
        block: Any = self.trunk.blocks[index]
        attn = block.attn
        h = x if isinstance(block, EvaBlockPostNorm) else block.norm1(x)
        if attn.qkv is None:
            q, k = attn.q_proj(h), attn.k_proj(h)
        elif getattr(attn, "q_bias", None) is None:
            q, k, _ = attn.qkv(h).chunk(3, -1)
        else:  # EVA keeps the biases apart, and the one of the keys is zero
            bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
            q, k, _ = F.linear(h, attn.qkv.weight, bias).chunk(3, -1)
        q, k = (part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in (q, k))  # B x H x N x d
        q, k = attn.q_norm(q), attn.k_norm(k)
        rope = self.rotation(x.shape[1])
        if rope is not None:
            n, half = self.num_prefix_tokens, getattr(attn, "rotate_half", False)
            q, k = (
                torch.cat([part[:, :, :n], apply_rot_embed_cat(part[:, :, n:], rope, half=half)], 2)
                for part in (q, k)
            )
        return (q * attn.scale @ k.transpose(-2, -1)).softmax(-1).mean(1)
