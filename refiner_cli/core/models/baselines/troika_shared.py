"""Troika's mechanism on the parts that Refiner has, for a comparison on equal terms.

The published method is :mod:`~refiner_cli.core.models.baselines.troika`. Here adapters, prompts and settings
are Refiner's; the class token is disentangled into a state and an object vector by two MLPs; and in one
block of *cross-modal traction* every text vector attends to the image's patches and is moved a learned
little by what it finds.

Shapes: ``B`` images, ``L`` patches, ``P`` texts, ``D`` joint width.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.config import MethodConfig
from refiner_cli.core.models.adapters import AdapterStack
from refiner_cli.core.models.baselines.traction import (
    HEAD_WIDTH,
    INITIAL_AMOUNT,
    PatchedVectors,
    TractionModel,
)
from refiner_cli.core.models.prompts import ROLES, Prompts, Role
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.data.labels import LabelSpace


class TroikaSharedConfig(MethodConfig):
    """Settings of ``troika-shared``."""

    adapters: bool = Field(default=True, description="bottleneck adapters in the visual blocks")
    adapter_dim: int = Field(64, ge=1, description="r, the adapters' inner width")
    adapter_blocks: int = Field(0, ge=0, description="how many last blocks carry adapters; 0: all")
    prompt_init: str = Field("a photo of", min_length=1, description="words that the contexts start from")
    learn_context: bool = Field(default=True, description="whether the contexts are trained")
    learn_primitives: bool = Field(default=True, description="whether state and object vectors are trained")
    primitive_dropout: float = Field(0.3, ge=0, lt=1, description="dropout on state and object vectors")


class Attention(nn.Module):
    """Multi-head attention from ``B x P x D`` to ``B x L x D``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B x h x P x D/h
        k, v = self.key_value(source).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Traction(nn.Module):
    """Text vectors attend to patches: ``t + amount * change``."""

    def __init__(self, joint: int) -> None:
        super().__init__()
        self.norm_text, self.norm_patches, self.norm_mlp = (nn.LayerNorm(joint) for _ in range(3))
        self.attend = Attention(joint)
        self.mlp = nn.Sequential(nn.Linear(joint, 4 * joint), nn.GELU(), nn.Linear(4 * joint, joint))
        self.amount = nn.Parameter(torch.full((joint,), INITIAL_AMOUNT))

    def forward(self, text: Tensor, patches: Tensor) -> Tensor:
        """``P x D`` and ``B x L x D`` -> unit vectors ``B x P x D``."""
        queries = text.expand(len(patches), -1, -1)
        change = self.attend(self.norm_text(queries), self.norm_patches(patches))
        change = change + self.mlp(self.norm_mlp(change))
        return F.normalize(queries + self.amount * change, dim=-1)


class TroikaShared(TractionModel):
    """Adapters, three prompts, disentangled image vectors and cross-modal traction."""

    Config = TroikaSharedConfig
    config: TroikaSharedConfig

    def __init__(self, backbone: Backbone, config: TroikaSharedConfig, space: LabelSpace) -> None:
        super().__init__(backbone, config, space)
        self.learns_words = config.learn_primitives
        tower, D = backbone.visual, backbone.embed_dim
        adapted = min(config.adapter_blocks or tower.depth, tower.depth) if config.adapters else 0
        self.adapters = AdapterStack(tower, adapted, config.adapter_dim)
        self.prompts = Prompts(
            backbone.text,
            space,
            context=config.prompt_init,
            dropout=config.primitive_dropout,
            learn_context=config.learn_context,
            learn_primitives=config.learn_primitives,
        )
        self.disentangle = nn.ModuleDict(
            {
                role: nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Dropout(0.1), nn.Linear(D, D))
                for role in ROLES[1:]
            }
        )
        self.traction = Traction(D)

    def encode_images(self, images: Tensor) -> PatchedVectors:
        tower = self.backbone.visual
        x = self.adapters.encode(
            tower,
            tower.embed(images),
            range(tower.depth),
            gradient_checkpointing=self.memory.gradient_checkpointing,
        )
        pooled, tokens = tower.pool_and_project(x)
        state, obj = (F.normalize(self.disentangle[role](pooled).float(), dim=-1) for role in ROLES[1:])
        patches = tower.project_tokens(tokens[:, tower.num_prefix_tokens :])
        return PatchedVectors(F.normalize(pooled.float(), dim=-1), state, obj, patches=patches)

    def attract(self, role: Role, v: Tensor, text: Tensor, patches: Tensor) -> Tensor:  # noqa: ARG002
        return self.logits_in_blocks(lambda rows: self.traction(rows, patches), v, text)
