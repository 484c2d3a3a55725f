"""The Refiner model: :meth:`Refiner.encode_images` reads like the method's figure.

Learnable queries pick region-specific semantics out of the patches and refine the class token with them
(visual refinement); image-to-text maps, aligned with states, objects and compositions, bring the refined
embeddings into text space; learned prompts give the text vectors. Gates, maps and adapters start at zero:
with every part on, the untrained model is CLIP zero-shot.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from refiner_cli.config import MethodConfig, TrainConfig
from refiner_cli.core.models.adapters import AdapterStack
from refiner_cli.core.models.base import ImageVectors, Model, Scores, TextBank
from refiner_cli.core.models.image_to_text import ImageToTextMaps
from refiner_cli.core.models.prompts import ROLES, Prompts
from refiner_cli.core.models.visual_refinement import VisualRefinement
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.core.towers.image import run_blocks
from refiner_cli.data.labels import LabelSpace


class RefinerConfig(MethodConfig):
    """Settings of ``refiner``; every part can be switched off."""

    adapters: bool = Field(default=True, description="bottleneck adapters in the last visual blocks")
    adapter_dim: int = Field(64, ge=1, description="r, the adapters' inner width")
    adapter_blocks: int = Field(0, ge=0, description="m, how many last blocks carry adapters; 0: all")
    queries_per_role: int = Field(
        2,
        ge=0,
        description="k, learnable queries for each of composition, state and object; 0: none",
    )
    image_to_text: bool = Field(default=True, description="image-to-text maps of the three roles")
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
        image_to_text: ImageToTextMaps | None,
        prompts: Prompts,
    ) -> None:
        super().__init__(backbone, config, space)
        self.adapters = adapters
        self.visual_refinement = visual_refinement
        self.image_to_text = image_to_text
        self.prompts = prompts
        self.has_state_branch, self.has_object_branch = config.align_state, config.align_object
        self.learns_words = config.learn_primitives

    @classmethod
    def build(cls, backbone: Backbone, config: RefinerConfig, space: LabelSpace) -> Self:
        """The parts that ``config`` names, at their initial values."""
        tower, D = backbone.visual, backbone.embed_dim
        adapted = min(config.adapter_blocks or tower.depth, tower.depth) if config.adapters else 0
        refinement = None
        if config.queries_per_role and tower.depth:
            refinement = VisualRefinement(config.queries_per_role, tower.width, config.adapter_dim)
        return cls(
            backbone,
            config,
            space,
            visual_refinement=refinement,
            image_to_text=ImageToTextMaps(D, config.image_to_text_dim or D) if config.image_to_text else None,
            adapters=AdapterStack(tower, adapted, config.adapter_dim),
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
        tokens = self.encode_tokens(images)  # B x N x W, before the last block
        class_token = self.read_class_token(tokens)  # B x D
        refined = self.refine(class_token, tokens)  # state, object and composition embeddings
        mapped = self.map_to_text(refined)
        if self.visual_refinement is None or not self.training:
            return mapped
        whole = self.map_to_text(ImageVectors(class_token, class_token, class_token))
        return replace(mapped, branches=(*mapped.branches, whole))

    def encode_pairs(self, space: LabelSpace) -> TextBank:
        return self.prompts.encode(
            space,
            chunk_size=self.memory.text_chunk_size,
            wise_ft_alpha=self.calibration.wise_ft_alpha,
            with_states=self.config.align_state,
            with_objects=self.config.align_object,
        )

    def loss(self, scores: Scores, truth: Tensor, space: LabelSpace, train: TrainConfig) -> Tensor:
        loss = super().loss(scores, truth, space, train)
        for branch in scores.branches:  # what the queries read, and the class token, each on its own
            loss = loss + train.concept_weight * super().loss(branch, truth, space, train)
        return loss

    @property
    def first_trainable_block(self) -> int:
        """Index of the first block that contains anything trainable; the queries read the last one."""
        return min(self.adapters.first_block, self.last_block)

    @property
    def last_block(self) -> int:
        """Index of the tower's last block; 0 for a tower without blocks."""
        return max(0, self.backbone.visual.depth - 1)

    @torch.no_grad()
    def encode_frozen_blocks(self, images: Tensor) -> Tensor:
        """The blocks that training does not change: ``B x 3 x H x W`` -> ``B x N x W``."""
        tower = self.backbone.visual
        return run_blocks(tower, tower.embed(images), range(self.first_trainable_block), ())

    def encode_tokens(self, images: Tensor) -> Tensor:
        """Images, or their tokens after the frozen blocks, up to the last block: ``B x N x W``."""
        x = images if images.ndim == 3 else self.encode_frozen_blocks(images)
        return self.adapters.encode(
            self.backbone.visual,
            x,
            range(self.first_trainable_block, self.last_block),
            gradient_checkpointing=self.memory.gradient_checkpointing,
        )

    def read_class_token(self, tokens: Tensor) -> Tensor:
        """Tokens before the last block -> the image vector after it, unit vectors ``B x D``."""
        tower = self.backbone.visual
        x = self.adapters.encode(
            tower,
            tokens,
            range(self.last_block, tower.depth),
            rows=tower.num_pooled_tokens,
            gradient_checkpointing=self.memory.gradient_checkpointing,
        )
        pooled, _ = tower.pool_and_project(x)
        return F.normalize(pooled.float(), dim=-1)

    def refine(self, class_token: Tensor, tokens: Tensor) -> ImageVectors:
        """The class token ``B x D`` with what the queries of each role read from the patches."""
        if self.visual_refinement is None:
            return ImageVectors(class_token, class_token, class_token)
        return self.visual_refinement(self.backbone.visual, class_token, tokens)

    def map_to_text(self, vectors: ImageVectors) -> ImageVectors:
        """Image vectors of each role in the space of the texts."""
        return vectors if self.image_to_text is None else self.image_to_text(vectors)

    @property
    def has_queries(self) -> bool:
        return self.visual_refinement is not None

    @property
    def query_roles(self) -> list[str]:
        """The role of each query, in the order of :meth:`query_attention`."""
        return [role for role in ROLES for _ in range(self.config.queries_per_role)]

    @torch.no_grad()
    def query_attention(self, images: Tensor) -> Tensor:
        """What the queries attend to, ``B x K x L`` over the patches, row by row of the image.

        Raises:
            ValueError: the model has no queries.
        """
        if self.visual_refinement is None:
            raise ValueError("This model has no queries.")
        return self.visual_refinement.attention(self.backbone.visual, self.encode_tokens(images))
