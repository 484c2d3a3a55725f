"""Troika (Huang et al., CVPR 2024) as its authors published it.

Adapters run beside attention and MLP of every visual block and read the block's tokens before the norm.
Three learned prompts give text vectors of compositions, states and objects. The class token is
*disentangled* into a state and an object vector. In *cross-modal traction* every text vector attends to all
tokens of the image, class token included, and is moved a learned little by what it finds.

Written from the paper (arXiv 2303.15230) and checked against the released code in logits, loss and gradients.
One quirk of the released code is kept: the patches are normalised once more for each branch, so the
object branch reads them after three norms. In the code a step of a single image fails in batch
normalisation; here it takes the running statistics.

Shapes: ``B`` images, ``N`` tokens of an image, ``P`` texts, ``W`` visual width, ``D`` joint width.
"""

from __future__ import annotations

from typing import cast

import torch
from open_clip.transformer import QuickGELU
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.config import MethodConfig
from refiner_cli.core.models.baselines.traction import (
    HEAD_WIDTH,
    INITIAL_AMOUNT,
    PatchedVectors,
    TractionModel,
)
from refiner_cli.core.models.prompts import ROLES, Prompts, Role
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.core.towers.image import RawInputAdapter, run_blocks
from refiner_cli.data.labels import LabelSpace

ADAPTER_SCALE = 0.1
NORMS = {"composition": 1, "state": 2, "object": 3}  # how often each branch normalises the patches


class TroikaConfig(MethodConfig):
    """Settings of ``troika``; the defaults are the published ones for UT-Zappos."""

    adapter_dim: int = Field(64, ge=1, description="r, the adapters' inner width")
    adapter_dropout: float = Field(0.1, ge=0, lt=1, description="dropout inside the adapters")
    prompt_init: str = Field("a photo of", min_length=1, description="words that the contexts start from")
    primitive_dropout: float = Field(0.3, ge=0, lt=1, description="dropout on state and object vectors")
    disentangle_dropout: float = Field(0.5, ge=0, lt=1, description="dropout on the disentangled vectors")
    traction_blocks: int = Field(2, ge=1, description="blocks of cross-modal traction")
    traction_dropout: float = Field(0.0, ge=0, lt=1, description="dropout inside them")


class ScaledAdapter(nn.Module):
    """``W -> r -> W`` with ReLU and dropout between, times 0.1; the up-projection starts at zero."""

    def __init__(self, width: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(width, dim)
        self.up = nn.Linear(dim, width)
        self.dropout = dropout
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """``... x W`` -> ``... x W``."""
        inner = F.dropout(torch.relu(self.down(x)), self.dropout, self.training)
        return ADAPTER_SCALE * self.up(inner)


class ScaledBlockAdapter(nn.Module, RawInputAdapter):
    """The two adapters of one block."""

    def __init__(self, width: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = ScaledAdapter(width, dim, dropout)
        self.mlp = ScaledAdapter(width, dim, dropout)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes a single image by the running statistics, also in training."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 1:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class Disentangle(nn.Module):
    """The class token -> the vector of a state or an object."""

    def __init__(self, joint: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(joint, joint)
        self.norm = BatchNorm(joint)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """``B x D`` -> ``B x D``."""
        return F.dropout(torch.relu(self.norm(self.linear(x))), self.dropout, self.training)


class TractionBlock(nn.Module):
    """Cross-attention from texts to image tokens, and an MLP; both residual."""

    def __init__(self, joint: int, dropout: float) -> None:
        super().__init__()
        self.heads = max(1, joint // HEAD_WIDTH)
        self.query, self.key, self.value = (nn.Linear(joint, joint, bias=False) for _ in range(3))
        self.out = nn.Linear(joint, joint)
        self.norm = nn.LayerNorm(joint)
        self.mlp = nn.Sequential(
            nn.Linear(joint, 4 * joint), QuickGELU(), nn.Dropout(dropout), nn.Linear(4 * joint, joint)
        )
        self.dropout = nn.Dropout(dropout)

    def split(self, x: Tensor) -> Tensor:
        """Heads of vectors, ``B x N x D`` -> ``B x h x N x D/h``."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_and_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Of an image's tokens ``B x N x D``, each ``B x h x N x D/h``."""
        return self.split(self.key(tokens)), self.split(self.value(tokens))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """``B x P x D`` (``1 x P x D``: the same texts for all images) -> ``B x P x D``."""
        q = self.split(self.query(x)).expand(len(keys), -1, -1, -1)
        attended = F.scaled_dot_product_attention(q, keys, values).transpose(1, 2).flatten(2)  # B x P x D
        x = x + self.dropout(self.out(attended))
        return x + self.dropout(self.mlp(self.norm(x)))


class Troika(TractionModel):
    """Adapters, three prompts, disentangled image vectors and cross-modal traction."""

    Config = TroikaConfig
    config: TroikaConfig

    def __init__(self, backbone: Backbone, config: TroikaConfig, space: LabelSpace) -> None:
        super().__init__(backbone, config, space)
        self.learns_words = True
        tower, D = backbone.visual, backbone.embed_dim
        self.adapters = nn.ModuleList(
            [
                ScaledBlockAdapter(tower.width, config.adapter_dim, config.adapter_dropout)
                for _ in range(tower.depth)
            ]
        )
        self.prompts = Prompts(
            backbone.text, space, context=config.prompt_init, dropout=config.primitive_dropout
        )
        self.disentangle = nn.ModuleDict(
            {role: Disentangle(D, config.disentangle_dropout) for role in ROLES[1:]}
        )
        self.traction = nn.ModuleList(
            [TractionBlock(D, config.traction_dropout) for _ in range(config.traction_blocks)]
        )
        self.norm_patches = nn.LayerNorm(D)
        self.amount = nn.Parameter(torch.full((D,), INITIAL_AMOUNT))

    def encode_images(self, images: Tensor) -> PatchedVectors:
        tower = self.backbone.visual
        adapters = [cast("ScaledBlockAdapter", block) for block in self.adapters]
        x = run_blocks(
            tower,
            tower.embed(images),
            range(tower.depth),
            adapters,
            gradient_checkpointing=self.memory.gradient_checkpointing,
        )
        pooled, tokens = tower.pool_and_project(x)
        state, obj = (F.normalize(self.disentangle[role](pooled).float(), dim=-1) for role in ROLES[1:])
        patches = tower.project_tokens(tokens)
        return PatchedVectors(F.normalize(pooled.float(), dim=-1), state, obj, patches=patches)

    def attract(self, role: Role, v: Tensor, text: Tensor, patches: Tensor) -> Tensor:
        for _ in range(NORMS[role]):
            patches = self.norm_patches(patches)
        blocks = [cast("TractionBlock", block) for block in self.traction]
        kept = [block.keys_and_values(patches) for block in blocks]

        def attract(rows: Tensor) -> Tensor:
            x = rows[None]
            for block, (keys, values) in zip(blocks, kept, strict=True):
                x = block(x, keys, values)  # B x C x D
            return F.normalize((rows + self.amount * x).float(), dim=-1)

        return self.logits_in_blocks(attract, v, text)
