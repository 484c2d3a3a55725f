"""Troika (Huang et al., CVPR 2024): three branches, and text drawn towards the patches of each image.

The mechanism: adapters in the image tower; three learned prompts; the class token disentangled into
a state and an object vector by two MLPs; and *cross-modal traction*, in which every text vector
attends to the image's patches and is moved a learned little by what it finds. The text then depends
on the image, so scores cost ``B x P`` cross-attentions; they are computed in chunks of pairs, which
bounds the memory in the open world.

Shapes: ``B`` images, ``L`` patches, ``P`` texts, ``D`` joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from refiner_cli.config import MethodConfig
from refiner_cli.core.models.adapters import AdapterStack
from refiner_cli.core.models.base import Calibration, ImageVectors, Model, PairIndices, Scores, TextBank
from refiner_cli.core.models.prompts import ROLES, Prompts
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.data.labels import LabelSpace

HEAD_WIDTH = 64
TEXTS_PER_BLOCK = 256  # texts at once
INITIAL_AMOUNT = 0.1  # of the learned amount of traction


class TroikaConfig(MethodConfig):
    """Settings of ``troika``."""

    adapters: bool = Field(default=True, description="bottleneck adapters in the visual blocks")
    adapter_dim: int = Field(64, ge=1, description="r, the adapters' inner width")
    adapter_blocks: int = Field(0, ge=0, description="how many last blocks carry adapters; 0: all")
    prompt_init: str = Field("a photo of", min_length=1, description="words that the contexts start from")
    learn_context: bool = Field(default=True, description="whether the contexts are trained")
    learn_primitives: bool = Field(default=True, description="whether state and object vectors are trained")
    primitive_dropout: float = Field(0.3, ge=0, lt=1, description="dropout on state and object vectors")


@dataclass(frozen=True)
class PatchedVectors(ImageVectors):
    """Image vectors and the patches they came from."""

    patches: Tensor = field(kw_only=True)  # B x L x D

    @staticmethod
    def average(parts: Sequence[ImageVectors]) -> PatchedVectors:
        """The text is drawn towards the patches of all parts."""
        whole = ImageVectors.average(parts)
        patches = torch.cat([part.patches for part in parts if isinstance(part, PatchedVectors)], 1)
        return PatchedVectors(whole.composition, whole.state, whole.object, patches=patches)


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


class Troika(Model):
    """Adapters, three prompts, disentangled image vectors and cross-modal traction."""

    Config = TroikaConfig
    scores_from_vectors = False  # traction reads the patches
    config: TroikaConfig

    def __init__(self, backbone: Backbone, config: TroikaConfig, space: LabelSpace) -> None:
        super().__init__(backbone, config, space)
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

    def encode_pairs(self, space: LabelSpace) -> TextBank:
        return self.prompts.encode(space, chunk_size=self.memory.text_chunk_size)

    def score(self, images: ImageVectors, bank: TextBank) -> Scores:
        assert isinstance(images, PatchedVectors)  # noqa: S101 - encode_images makes them
        assert bank.states is not None  # noqa: S101 - troika always aligns all three
        assert bank.objects is not None  # noqa: S101
        return Scores(
            self.attract(images.composition, bank.pairs, images.patches),
            self.attract(images.state, bank.states, images.patches),
            self.attract(images.object, bank.objects, images.patches),
        )

    def attract(self, v: Tensor, text: Tensor, patches: Tensor) -> Tensor:
        """Logits ``B x P`` of image vectors ``B x D`` against text attracted to the image's patches."""

        def part(rows: Tensor) -> Tensor:
            attracted = self.traction(rows, patches)  # B x C x D
            return self.backbone.logit_scale * torch.einsum("bd,bcd->bc", v.float(), attracted.float())

        parts = text.split(TEXTS_PER_BLOCK)
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([part(rows) for rows in parts], 1) + self.backbone.logit_bias
        attracted = [checkpoint(part, rows, use_reentrant=False) for rows in parts]
        return torch.cat(attracted, 1) + self.backbone.logit_bias

    def combine(self, scores: Scores, space: PairIndices, calibration: Calibration | None = None) -> Tensor:
        """The published score: composition logit plus the product of state and object probabilities."""
        del calibration  # the published score has no weights
        assert scores.state is not None  # noqa: S101 - troika always aligns all three
        assert scores.object is not None  # noqa: S101
        state, obj = (torch.from_numpy(i).to(self.device) for i in (space.pair_state, space.pair_object))
        return scores.composition + scores.state.softmax(-1)[:, state] * scores.object.softmax(-1)[:, obj]
