"""The Refiner model: wiring only; reads like the method.

Concept queries refine the class token with regional semantics, image-to-text maps bring the result
into text space, and learned prompts give the text vectors of states, objects and compositions.
With gates, maps and adapters at their start the model is CLIP zero-shot.

In training the concepts are also aligned on their own, without the class token. Otherwise they have
nothing to learn from: behind a gate near zero no gradient reaches them, and a gate in front of noise
has no reason to open.

State and object are aligned among what training showed together with the image's other word. A boot
that was never shown burnt is a wrong answer for every burnt picture of the training set; to have it
compete there teaches that what looks burnt is no boot, and just that has to be unlearned on unseen
pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.config import ModelConfig, TrainConfig
from refiner_cli.core.adapters import BlockAdapter
from refiner_cli.core.clip import Backbone
from refiner_cli.core.concepts import Concepts
from refiner_cli.core.fusion import ImageToText
from refiner_cli.core.model import ImageVectors, Model, Scores, TextBank
from refiner_cli.core.prompts import ROLES, Prompts, Role
from refiner_cli.core.visual import run, some_patches
from refiner_cli.data.labels import LabelSpace


@dataclass(frozen=True)
class RefinedVectors(ImageVectors):
    """Image vectors, and what the concepts say on their own."""

    concepts: ImageVectors


@dataclass(frozen=True)
class RefinedScores(Scores):
    """The scores, and those of the concepts on their own."""

    concepts: Scores


class Refiner(Model):
    """Built from parts; see ``core/build.py`` for how a configuration becomes parts."""

    def __init__(
        self,
        backbone: Backbone,
        config: ModelConfig,
        space: LabelSpace,
        *,
        adapters: Sequence[BlockAdapter],
        concepts: Concepts | None,
        fusion: nn.ModuleDict,
        prompts: Prompts,
    ) -> None:
        super().__init__(backbone, config, space)
        self.adapters = nn.ModuleList(adapters)
        self.concepts = concepts
        self.fusion = fusion
        self.prompts = prompts
        self.has_state_branch, self.has_object_branch = config.align_state, config.align_object

    @classmethod
    def build(cls, backbone: Backbone, config: ModelConfig, space: LabelSpace) -> Refiner:
        """Make the parts that ``config`` asks for, at their initial values."""
        W, D, depth = backbone.visual.width, backbone.embed_dim, backbone.visual.depth
        adapted = min(config.adapter_blocks or (depth + 1) // 2, depth) if config.adapters else 0
        concepts = None
        if config.queries:
            concepts = Concepts(
                queries=config.queries,
                blocks=min(config.query_blocks, depth),
                width=W,
                inner=config.adapter_width,
                joint=D,
            )
        maps: dict[str, nn.Module] = {
            role: ImageToText(D, config.fusion_width or D) for role in ROLES if config.fusion
        }
        return cls(
            backbone,
            config,
            space,
            adapters=[BlockAdapter(W, config.adapter_width) for _ in range(adapted)],
            concepts=concepts,
            fusion=nn.ModuleDict(maps),
            prompts=Prompts.build(backbone.text, config, space),
        )

    def rate_share(self, name: str, train: TrainConfig) -> float:
        return train.concept_rate if name.startswith("concepts.") else 1.0

    def only_shown(self, train: TrainConfig) -> bool:
        return train.only_shown

    @property
    def asked(self) -> int:
        """The first block that the concept queries go through."""
        return self.backbone.visual.depth - (len(self.concepts.adapters) if self.concepts else 0)

    @property
    def first(self) -> int:
        """The first block that something learned takes part in."""
        return min(self.backbone.visual.depth - len(self.adapters), self.asked)

    @torch.no_grad()
    def lower(self, images: Tensor) -> Tensor:
        """Below all that training changes: ``B x 3 x H x W`` -> ``B x N x W``."""
        tower = self.backbone.visual
        return run(tower, tower.embed(images), range(self.first), ())

    def see(self, images: Tensor, rows: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Through the image tower, in training perhaps without some of the patches.

        Args:
            images: ``B x 3 x H x W``, or the tokens ``B x N x W`` that :meth:`lower` gave.
            rows: how many first tokens are needed in the end; None: all.

        Returns:
            The class token ``B x D``, the tokens ``B x N x W``, and those that the queries read from.
        """
        tower, adapters = self.backbone.visual, [cast("BlockAdapter", a) for a in self.adapters]
        x = images if images.ndim == 3 else self.lower(images)
        if self.training and self.config.patch_dropout:
            x = some_patches(x, tower.prefix, 1 - self.config.patch_dropout)
        x = run(tower, x, range(self.first, self.asked), adapters, rows=rows, recompute=self.recompute)
        last = run(tower, x, range(self.asked, tower.depth), adapters, rows=rows, recompute=self.recompute)
        return *tower.finish(last), x

    def encode_images(self, images: Tensor) -> ImageVectors:
        pooled, _, tokens = self.see(images, self.backbone.visual.pooled)
        cls = F.normalize(pooled.float(), dim=-1)
        if self.concepts is None:
            return self.mapped(dict.fromkeys(ROLES, cls))
        read = self.concepts(self.backbone.visual, tokens, recompute=self.recompute)
        refined = self.mapped(self.concepts.refine(cls, read))
        if not self.training:
            return refined
        alone = ImageVectors(*(F.normalize(read[role].float(), dim=-1) for role in ROLES))
        return RefinedVectors(refined.composition, refined.state, refined.object, alone)

    def mapped(self, vectors: dict[Role, Tensor]) -> ImageVectors:
        """Through the image-to-text maps."""
        return ImageVectors(
            *(self.fusion[r](vectors[r]).float() if r in self.fusion else vectors[r] for r in ROLES)
        )

    def score(self, images: ImageVectors, bank: TextBank) -> Scores:
        scores = super().score(images, bank)
        if not isinstance(images, RefinedVectors):
            return scores
        alone = super().score(images.concepts, bank)
        return RefinedScores(scores.composition, scores.state, scores.object, alone)

    def loss(self, scores: Scores, truth: Tensor, space: LabelSpace, train: TrainConfig) -> Tensor:
        loss = super().loss(scores, truth, space, train)
        if isinstance(scores, RefinedScores):
            loss = loss + train.concept_weight * super().loss(scores.concepts, truth, space, train)
        return loss

    def encode_pairs(self, space: LabelSpace) -> TextBank:
        text, prompts = self.backbone.text, self.prompts
        states, objects = prompts.words("state", space.states), prompts.words("object", space.objects)
        parent, leaf = (torch.from_numpy(i).to(self.device) for i in (space.pair_state, space.pair_object))
        contexts = prompts.contexts
        pairs = text.encode_pairs(contexts["composition"], states, objects[leaf], parent)
        return TextBank(
            space,
            F.normalize(pairs, dim=-1),
            F.normalize(text.encode(contexts["state"], states), dim=-1) if self.config.align_state else None,
            F.normalize(text.encode(contexts["object"], objects), dim=-1)
            if self.config.align_object
            else None,
        )

    @torch.no_grad()
    def look(self, images: Tensor) -> Tensor:
        """What the concept queries look at, ``B x K x L`` over the patches, row by row of the image."""
        if self.concepts is None:
            raise ValueError("This model has no concept queries.")
        _, _, tokens = self.see(images)
        return self.concepts.attention(self.backbone.visual, tokens)
