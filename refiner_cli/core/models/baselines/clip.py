"""CLIP zero-shot: the hand-written prompt "a photo of state object". Nothing to train."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from refiner_cli.core.models.base import ImageVectors, Model, TextBank
from refiner_cli.core.towers.text import spoken
from refiner_cli.data.labels import LabelSpace


class Clip(Model):
    """The backbone as it is."""

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> ImageVectors:
        v = F.normalize(self.clip.encode_image(images).float(), dim=-1)
        return ImageVectors(v, v, v)

    @torch.no_grad()
    def encode_pairs(self, space: LabelSpace) -> TextBank:
        prompts = [f"{self.config.context} {spoken(s)} {spoken(o)}" for s, o in space.pairs]
        return TextBank(space, F.normalize(self.backbone.text.encode_texts(prompts), dim=-1), None, None)
