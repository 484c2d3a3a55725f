"""CoOp and CSP: CLIP with one learned prompt. They differ in what of it is learned.

CoOp (Zhou et al., IJCV 2022) learns the context and keeps the words; CSP (Nayak et al., ICLR 2023)
keeps the context and learns one vector a state and one an object.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from refiner_cli.config import ModelConfig
from refiner_cli.core.models.base import TextBank
from refiner_cli.core.models.baselines.clip import Clip
from refiner_cli.core.models.prompts import Prompts
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.data.labels import LabelSpace


class Prompted(Clip):
    """CLIP's image vectors against learned composition prompts."""

    learns_context: bool
    learns_words: bool

    def __init__(self, backbone: Backbone, config: ModelConfig, space: LabelSpace) -> None:
        super().__init__(backbone, config, space)
        self.prompts = Prompts(
            backbone.text,
            space.states,
            space.objects,
            roles=("composition",),
            context=config.context,
            dropout=config.word_dropout if self.learns_words else 0.0,
        )
        self.prompts.contexts.requires_grad_(self.learns_context)
        self.prompts.states.requires_grad_(self.learns_words)
        self.prompts.objects.requires_grad_(self.learns_words)

    def encode_pairs(self, space: LabelSpace) -> TextBank:
        states = self.prompts.words("state", space.states)
        objects = self.prompts.words("object", space.objects)
        parent, leaf = (torch.from_numpy(i).to(self.device) for i in (space.pair_state, space.pair_object))
        pairs = self.backbone.text.encode_pairs(
            self.prompts.contexts["composition"], states, objects[leaf], parent
        )
        return TextBank(space, F.normalize(pairs, dim=-1), None, None)


class Coop(Prompted):
    learns_context, learns_words = True, False


class Csp(Prompted):
    learns_context, learns_words = False, True
