"""CLIP zero-shot: the hand-written prompt "a photo of state object". Nothing to train."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from refiner_cli.config import MethodConfig
from refiner_cli.core.models.base import ImageVectors, Model, TextBank
from refiner_cli.core.towers.text import label_to_text
from refiner_cli.data.labels import LabelSpace


class ClipConfig(MethodConfig):
    """Settings of ``clip``."""

    prompt_init: str = Field("a photo of", min_length=1, description="words in front of state and object")


class Clip(Model):
    """The backbone as it is."""

    Config = ClipConfig
    frozen_image_side = True
    config: ClipConfig

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> ImageVectors:
        """Preprocessed images ``B x 3 x H x W``, or the backbone's vectors of them ``B x D``."""
        v = images if images.ndim == 2 else self.clip.encode_image(images)
        v = F.normalize(v.float(), dim=-1)
        return ImageVectors(v, v, v)

    @torch.no_grad()
    def encode_pairs(self, space: LabelSpace) -> TextBank:
        prompts = [f"{self.config.prompt_init} {label_to_text(s)} {label_to_text(o)}" for s, o in space.pairs]
        vectors = self.backbone.text.encode_texts(prompts, chunk_size=self.memory.text_chunk_size)
        return TextBank(space, F.normalize(vectors, dim=-1), None, None)
