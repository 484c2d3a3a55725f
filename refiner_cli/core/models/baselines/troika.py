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
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from refiner_cli.config import ModelConfig
from refiner_cli.core.models.adapters import BlockAdapter
from refiner_cli.core.models.base import Calibration, ImageVectors, Scores, TextBank
from refiner_cli.core.models.prompts import ROLES, Prompts
from refiner_cli.core.models.refiner import Refiner
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.data.labels import LabelSpace

HEAD_WIDTH = 64
CHUNK = 256  # texts drawn at once
START = 0.1  # of the learned amount of traction


@dataclass(frozen=True)
class PatchedVectors(ImageVectors):
    """Image vectors and the patches they came from."""

    patches: Tensor  # B x L x D

    @staticmethod
    def merged(parts: Sequence[ImageVectors]) -> PatchedVectors:
        """The text is drawn to the patches of all parts."""
        whole = ImageVectors.merged(parts)
        patches = torch.cat([part.patches for part in parts if isinstance(part, PatchedVectors)], 1)
        return PatchedVectors(whole.composition, whole.state, whole.object, patches)


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
        self.amount = nn.Parameter(torch.full((joint,), START))

    def forward(self, text: Tensor, patches: Tensor) -> Tensor:
        """``P x D`` and ``B x L x D`` -> unit vectors ``B x P x D``."""
        queries = text.expand(len(patches), -1, -1)
        change = self.attend(self.norm_text(queries), self.norm_patches(patches))
        change = change + self.mlp(self.norm_mlp(change))
        return F.normalize(queries + self.amount * change, dim=-1)


class Troika(Refiner):
    """Refiner's adapters and prompts, with Troika's way from image to text."""

    def __init__(self, backbone: Backbone, config: ModelConfig, space: LabelSpace) -> None:
        W, D, depth = backbone.visual.width, backbone.embed_dim, backbone.visual.depth
        adapted = min(config.adapter_blocks or depth, depth) if config.adapters else 0
        super().__init__(
            backbone,
            config,
            space,
            adapters=[BlockAdapter(W, config.adapter_width) for _ in range(adapted)],
            concepts=None,
            fusion=nn.ModuleDict(),
            prompts=Prompts.build(backbone.text, config, space),
        )
        self.has_state_branch = self.has_object_branch = False  # combine() has no weights to choose
        self.disentangle = nn.ModuleDict(
            {
                role: nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Dropout(0.1), nn.Linear(D, D))
                for role in ROLES[1:]
            }
        )
        self.traction = Traction(D)

    def encode_images(self, images: Tensor) -> PatchedVectors:
        pooled, tokens = self.backbone.visual.finish(self.enter(images, self.backbone.visual.depth))
        state, obj = (F.normalize(self.disentangle[role](pooled).float(), dim=-1) for role in ROLES[1:])
        patches = self.backbone.visual.project(tokens[:, self.backbone.visual.prefix :])
        return PatchedVectors(F.normalize(pooled.float(), dim=-1), state, obj, patches)

    def score(self, images: ImageVectors, bank: TextBank) -> Scores:
        assert isinstance(images, PatchedVectors)  # noqa: S101 - made by encode_images
        assert bank.states is not None  # noqa: S101 - troika always aligns all three
        assert bank.objects is not None  # noqa: S101
        return Scores(
            self.draw(images.composition, bank.pairs, images.patches),
            self.draw(images.state, bank.states, images.patches),
            self.draw(images.object, bank.objects, images.patches),
        )

    def draw(self, v: Tensor, text: Tensor, patches: Tensor) -> Tensor:
        """Logits ``B x P`` of image vectors ``B x D`` against text drawn to the image's patches."""

        def part(rows: Tensor) -> Tensor:
            drawn = self.traction(rows, patches)  # B x C x D
            return self.backbone.logit_scale * torch.einsum("bd,bcd->bc", v.float(), drawn.float())

        parts = text.split(CHUNK)
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([part(rows) for rows in parts], 1) + self.backbone.logit_bias
        found = [checkpoint(part, rows, use_reentrant=False) for rows in parts]
        return torch.cat(found, 1) + self.backbone.logit_bias

    def combine(self, scores: Scores, space: LabelSpace, calibration: Calibration | None = None) -> Tensor:
        """The published score: composition logit plus the product of state and object probabilities."""
        del calibration  # it has nothing to say here
        assert scores.state is not None  # noqa: S101 - troika always aligns all three
        assert scores.object is not None  # noqa: S101
        state, obj = (torch.from_numpy(i).to(self.device) for i in (space.pair_state, space.pair_object))
        return scores.composition + scores.state.softmax(-1)[:, state] * scores.object.softmax(-1)[:, obj]
