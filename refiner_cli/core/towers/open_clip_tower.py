"""open_clip's own ViT as an image tower."""

from __future__ import annotations

from typing import Any

import open_clip
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.core.towers.image import (
    FULL_ATTENTION,
    AttentionSpec,
    ParallelAdapter,
    adapter_input,
    own_token_mask,
)
from refiner_cli.core.towers.library_internals import open_clip_embed, open_clip_pool
from refiner_cli.errors import ConfigError


class OpenClipTower:
    """open_clip's VisionTransformer."""

    def __init__(self, visual: open_clip.transformer.VisionTransformer) -> None:
        if getattr(visual, "attn_pool_contrastive", None) is not None:
            raise ConfigError("Image towers with two attentional poolers are not supported.")
        self.visual = visual
        self.width = visual.conv1.out_channels
        self.depth = len(visual.transformer.resblocks)
        self.patch_size = visual.patch_size[0]
        self.num_prefix_tokens = 1
        self.attn_pool: Any = visual.attn_pool  # CoCa's; None: the others
        self.num_pooled_tokens = 1 if visual.pool_type == "tok" and self.attn_pool is None else None

    def embed(self, images: Tensor) -> Tensor:
        return open_clip_embed(self.visual, images)

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
        x = x[:, : spec.num_outputs]
        read = kept if adapters is None else adapter_input(adapters, x, kept)
        x = x + block.ls_1(attended)
        if adapters is None:
            return x + block.ls_2(block.mlp(block.ln_2(x)))
        x = x + adapters.attention(read)
        h = block.ln_2(x)
        return x + block.ls_2(block.mlp(h)) + adapters.mlp(adapter_input(adapters, x, h))

    def token_values(self, index: int, x: Tensor) -> Tensor:
        block: Any = self.visual.transformer.resblocks[index]
        h, attn = block.ln_1(x), block.attn
        if isinstance(attn, nn.MultiheadAttention):
            weight, bias = attn.in_proj_weight[-self.width :], attn.in_proj_bias[-self.width :]
            return block.ls_1(attn.out_proj(F.linear(h, weight, bias)))
        return block.ls_1(block.ln_attn(attn(h, attn_mask=own_token_mask(x))))

    def pool_and_project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        read_out = x if self.attn_pool is not None else self.visual.ln_post(x)
        return open_clip_pool(self.visual, x) @ self.visual.proj, read_out

    def project_tokens(self, tokens: Tensor) -> Tensor:
        if self.attn_pool is not None:  # a token that the pooler's queries attend to alone
            attn = self.attn_pool.attn
            weight = attn.v_proj_weight if attn.in_proj_weight is None else attn.in_proj_weight.chunk(3)[2]
            value = F.linear(self.attn_pool.ln_k(tokens), weight, attn.in_proj_bias.chunk(3)[2])
            tokens = self.visual.ln_post(attn.out_proj(value))
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
