"""The Refiner model: :meth:`Refiner.encode_images` reads like the method's figure.

Learnable queries pick region-specific semantics out of the image tower (visual refinement),
image-to-text maps bring the class token into text space, and learned prompts give the text vectors of
states, objects and compositions. Without queries, and with maps and adapters at their initial values,
the model is CLIP zero-shot.

Training aligns class token and regions each on their own; inference adds their vectors. Aligned as a
sum, one of them does the work and the other learns little (see the study's notes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.config import MethodConfig, TrainConfig
from refiner_cli.core.models.adapters import AdapterStack
from refiner_cli.core.models.base import ImageVectors, Model, Scores, TextBank
from refiner_cli.core.models.image_to_text import ImageToText
from refiner_cli.core.models.prompts import ROLES, Prompts
from refiner_cli.core.models.visual_refinement import VisualRefinement
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.core.towers.image import run_blocks
from refiner_cli.data.labels import LabelSpace


class RefinerConfig(MethodConfig):
    """Settings of ``refiner``; every part can be switched off."""

    adapters: bool = Field(default=True, description="bottleneck adapters in the last visual blocks")
    adapter_dim: int = Field(64, ge=1, description="r, the adapters' inner width")
    adapter_blocks: int = Field(0, ge=0, description="m, how many last blocks carry adapters; 0: half")
    num_queries: int = Field(8, ge=0, description="K, learnable queries; 0 switches them off")
    query_blocks: int = Field(1, ge=1, description="last visual blocks that the queries pass through")
    image_to_text: bool = Field(default=True, description="image-to-text maps of states and objects")
    image_to_text_dim: int = Field(0, ge=0, description="hidden width of the maps; 0: the joint width")
    align_state: bool = Field(default=True, description="alignment of images with states")
    align_object: bool = Field(default=True, description="alignment of images with objects")
    prompt_init: str = Field("a photo of", min_length=1, description="words that the contexts start from")
    learn_context: bool = Field(default=True, description="whether the contexts are trained")
    learn_primitives: bool = Field(default=True, description="whether state and object vectors are trained")
    primitive_dropout: float = Field(0.3, ge=0, lt=1, description="dropout on state and object vectors")


class Refiner(Model):
    """Built from parts; :meth:`build` makes them from a configuration."""

    Config = RefinerConfig
    config: RefinerConfig

    def __init__(
        self,
        backbone: Backbone,
        config: RefinerConfig,
        space: LabelSpace,
        *,
        adapters: AdapterStack,
        visual_refinement: VisualRefinement | None,
        image_to_text: Mapping[str, ImageToText],
        prompts: Prompts,
    ) -> None:
        super().__init__(backbone, config, space)
        self.adapters = adapters
        self.visual_refinement = visual_refinement
        self.image_to_text = nn.ModuleDict(dict(image_to_text))
        self.prompts = prompts
        self.has_state_branch, self.has_object_branch = config.align_state, config.align_object
        self.learns_words = config.learn_primitives

    @classmethod
    def build(cls, backbone: Backbone, config: RefinerConfig, space: LabelSpace) -> Self:
        """The parts that ``config`` names, at their initial values."""
        tower, D = backbone.visual, backbone.embed_dim
        adapted = min(config.adapter_blocks or (tower.depth + 1) // 2, tower.depth)
        refinement = None
        if config.num_queries and tower.depth:
            refinement = VisualRefinement(
                num_queries=config.num_queries,
                blocks=min(config.query_blocks, tower.depth),
                width=tower.width,
                adapter_dim=config.adapter_dim,
                joint=D,
            )
        maps: dict[str, ImageToText] = {
            role: ImageToText(D, config.image_to_text_dim or D) for role in ROLES[1:]
        }
        return cls(
            backbone,
            config,
            space,
            visual_refinement=refinement,
            image_to_text=maps if config.image_to_text else {},
            adapters=AdapterStack(tower, adapted if config.adapters else 0, config.adapter_dim),
            prompts=Prompts(
                backbone.text,
                space,
                context=config.prompt_init,
                dropout=config.primitive_dropout,
                learn_context=config.learn_context,
                learn_primitives=config.learn_primitives,
            ),
        )

    def encode_images(self, images: Tensor) -> ImageVectors:
        """Preprocessed images ``B x 3 x H x W``, or tokens of :meth:`encode_frozen_blocks` -> vectors."""
        tokens = self.encode_upper_blocks(images)  # B x N x W, below the blocks of the queries
        class_token, queries = self.pass_query_blocks(tokens)  # B x D, B x K x W
        whole = self.map_to_text_space(class_token)
        if self.visual_refinement is None:
            return whole
        regions = self.visual_refinement(self.backbone.visual, queries)
        return replace(ImageVectors.average([whole, regions]), branches=(whole, regions))

    def encode_pairs(self, space: LabelSpace) -> TextBank:
        return self.prompts.encode(
            space,
            chunk_size=self.memory.text_chunk_size,
            wise_ft_alpha=self.calibration.wise_ft_alpha,
            with_states=self.config.align_state,
            with_objects=self.config.align_object,
        )

    def loss(self, scores: Scores, truth: Tensor, space: LabelSpace, train: TrainConfig) -> Tensor:
        if not scores.branches:
            return super().loss(scores, truth, space, train)
        whole, regions = scores.branches
        loss = super().loss(whole, truth, space, train)
        return loss + train.concept_weight * super().loss(regions, truth, space, train)

    @property
    def first_query_block(self) -> int:
        """Index of the first block that also processes the queries."""
        blocks = 0 if self.visual_refinement is None else len(self.visual_refinement.adapters)
        return self.backbone.visual.depth - blocks

    @property
    def first_trainable_block(self) -> int:
        """Index of the first block that contains anything trainable."""
        return min(self.adapters.first_block, self.first_query_block)

    @torch.no_grad()
    def encode_frozen_blocks(self, images: Tensor) -> Tensor:
        """The blocks that training does not change: ``B x 3 x H x W`` -> ``B x N x W``."""
        tower = self.backbone.visual
        return run_blocks(tower, tower.embed(images), range(self.first_trainable_block), ())

    def encode_upper_blocks(self, images: Tensor) -> Tensor:
        """Images, or their tokens after the frozen blocks, up to the first query block: ``B x N x W``."""
        tower = self.backbone.visual
        x = images if images.ndim == 3 else self.encode_frozen_blocks(images)
        blocks = range(self.first_trainable_block, self.first_query_block)
        rows = tower.num_pooled_tokens if self.visual_refinement is None else None
        return self.adapters.encode(
            tower, x, blocks, rows=rows, gradient_checkpointing=self.memory.gradient_checkpointing
        )

    def pass_query_blocks(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens through the query blocks: the class token as a unit vector ``B x D``, and the queries."""
        tower, queries = self.backbone.visual, None
        if self.visual_refinement is not None:
            x, queries = self.visual_refinement.run_with_queries(
                tower,
                x,
                tower.depth,
                self.adapters.blocks(),
                rows=tower.num_pooled_tokens,
                gradient_checkpointing=self.memory.gradient_checkpointing,
            )
        pooled, _ = tower.pool_and_project(x)
        return F.normalize(pooled.float(), dim=-1), queries

    def map_to_text_space(self, v: Tensor) -> ImageVectors:
        """The class token, a unit vector ``B x D``, through the image-to-text maps."""
        composition, state, obj = (
            self.image_to_text[role](v) if role in self.image_to_text else v for role in ROLES
        )
        return ImageVectors(composition, state, obj)

    @property
    def has_queries(self) -> bool:
        return self.visual_refinement is not None

    @torch.no_grad()
    def query_attention(self, images: Tensor) -> Tensor:
        """What the queries attend to, ``B x K x L`` over the patches, row by row of the image.

        Raises:
            ValueError: the model has no queries.
        """
        if self.visual_refinement is None:
            raise ValueError("This model has no queries.")
        x = self.encode_upper_blocks(images)
        return self.visual_refinement.attention_weights(self.backbone.visual, x, self.adapters.blocks())
