"""The Refiner model: wiring only; reads like the method.

Concept queries refine the class token with regional semantics, image-to-text maps bring the result
into text space, and learned prompts give the text vectors of states, objects and compositions.
With maps and adapters at their start the class token and the text are those of CLIP zero-shot.

In training class token and concepts are aligned each on its own; afterwards their vectors are added.
Aligned as a sum, one of them does the work and the other learns little
(``refiner_cli/experiments/NOTES.md``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.config import ModelConfig, TrainConfig
from refiner_cli.core.models.adapters import BlockAdapter
from refiner_cli.core.models.base import ImageVectors, Model, Scores, TextBank
from refiner_cli.core.models.hubness import Hubs
from refiner_cli.core.models.image_to_text import ImageToText
from refiner_cli.core.models.prompts import ROLES, Prompts
from refiner_cli.core.models.visual_refinement import Concepts
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.core.towers.image import Beside, run
from refiner_cli.data.labels import LabelSpace


@dataclass(frozen=True)
class RefinedVectors(ImageVectors):
    """What the class token says, and what the concepts say."""

    concepts: ImageVectors


@dataclass(frozen=True)
class RefinedScores(Scores):
    """The scores of the class token, and those of the concepts."""

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
        hubs: Hubs | None = None,
    ) -> None:
        super().__init__(backbone, config, space)
        self.adapters = nn.ModuleList(adapters)
        self.concepts = concepts
        self.fusion = fusion
        self.prompts = prompts
        self.hubs = hubs
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
            role: ImageToText(D, config.fusion_width or D) for role in ROLES[1:] if config.fusion
        }
        return cls(
            backbone,
            config,
            space,
            adapters=[BlockAdapter(W, config.adapter_width) for _ in range(adapted)],
            concepts=concepts,
            fusion=nn.ModuleDict(maps),
            prompts=Prompts.build(backbone.text, config, space, share=config.word_share),
            hubs=Hubs(len(space.seen_pairs), D) if config.hubs else None,
        )

    @property
    def asked(self) -> int:
        """The first block that the concept queries go through."""
        return self.backbone.visual.depth - (0 if self.concepts is None else len(self.concepts.adapters))

    @property
    def first(self) -> int:
        """The first block that something learned takes part in."""
        return min(self.backbone.visual.depth - len(self.adapters), self.asked)

    @property
    def beside(self) -> list[Beside]:
        """The adapters of the class token and the patches, in the tower's last blocks."""
        return [cast("BlockAdapter", adapter) for adapter in self.adapters]

    @torch.no_grad()
    def lower(self, images: Tensor) -> Tensor:
        """Below all that training changes: ``B x 3 x H x W`` -> ``B x N x W``."""
        tower = self.backbone.visual
        return run(tower, tower.embed(images), range(self.first), ())

    def enter(self, images: Tensor, until: int, rows: int | None = None) -> Tensor:
        """Through the image tower's blocks below ``until``.

        Args:
            images: ``B x 3 x H x W``, or the tokens ``B x N x W`` that :meth:`lower` gave.
            rows: how many tokens are needed after the tower's last block; None: all.
        """
        tower = self.backbone.visual
        x = images if images.ndim == 3 else self.lower(images)
        return run(tower, x, range(self.first, until), self.beside, rows=rows, recompute=self.recompute)

    def encode_images(self, images: Tensor) -> ImageVectors:
        tower, concepts = self.backbone.visual, self.concepts
        if concepts is None:
            pooled, _ = tower.finish(self.enter(images, tower.depth, tower.pooled))
            return self.mapped(F.normalize(pooled.float(), dim=-1))
        x = self.enter(images, self.asked)
        x = concepts.join(tower, x, tower.depth, self.beside, rows=tower.pooled, recompute=self.recompute)
        pooled, _ = tower.finish(x[:, len(concepts) :])
        whole = self.mapped(F.normalize(pooled.float(), dim=-1))
        found = ImageVectors(**concepts(tower, x[:, : len(concepts)]))
        if self.training:
            return RefinedVectors(whole.composition, whole.state, whole.object, found)
        return ImageVectors.merged([whole, found])

    def mapped(self, v: Tensor) -> ImageVectors:
        """The class token ``B x D``, a unit vector, through the image-to-text maps."""
        return ImageVectors(*(self.fusion[role](v) if role in self.fusion else v for role in ROLES))

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
        pairs = F.normalize(pairs, dim=-1)
        return TextBank(
            space,
            pairs,
            F.normalize(text.encode(contexts["state"], states), dim=-1) if self.config.align_state else None,
            F.normalize(text.encode(contexts["object"], objects), dim=-1)
            if self.config.align_object
            else None,
            None if self.hubs is None or self.training else self.hubs(pairs, self.backbone.logit_scale),
        )

    @torch.no_grad()
    def look(self, images: Tensor) -> Tensor:
        """What the concept queries look at, ``B x K x L`` over the patches, row by row of the image."""
        if self.concepts is None:
            raise ValueError("This model has no concept queries.")
        x = self.enter(images, self.asked)
        return self.concepts.attention(self.backbone.visual, x, self.beside)
