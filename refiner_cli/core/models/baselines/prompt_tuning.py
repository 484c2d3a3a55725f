"""CoOp and CSP: CLIP with one learned prompt. They differ in which part of it is learned.

CoOp (Zhou et al., IJCV 2022) learns the context and keeps the words; CSP (Nayak et al., ICLR 2023)
keeps the context and learns one vector per state and one per object.
"""

from __future__ import annotations

from pydantic import Field

from refiner_cli.config import MethodConfig
from refiner_cli.core.models.base import TextBank
from refiner_cli.core.models.baselines.clip import Clip, ClipConfig
from refiner_cli.core.models.prompts import Prompts
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.data.labels import LabelSpace


class CoopConfig(ClipConfig):
    """Settings of ``coop``."""


class CspConfig(ClipConfig):
    """Settings of ``csp``."""

    primitive_dropout: float = Field(0.3, ge=0, lt=1, description="dropout on state and object vectors")


class PromptTuning(Clip):
    """CLIP's image vectors against learned composition prompts."""

    learn_context: bool
    learn_primitives: bool

    def __init__(self, backbone: Backbone, config: MethodConfig, space: LabelSpace) -> None:
        super().__init__(backbone, config, space)
        self.learns_words = self.learn_primitives
        self.prompts = Prompts(
            backbone.text,
            space,
            roles=("composition",),
            context=self.config.prompt_init,
            dropout=self.config.primitive_dropout if isinstance(self.config, CspConfig) else 0.0,
            learn_context=self.learn_context,
            learn_primitives=self.learn_primitives,
        )

    def encode_pairs(self, space: LabelSpace) -> TextBank:
        return self.prompts.encode(
            space,
            chunk_size=self.memory.text_chunk_size,
            wise_ft_alpha=self.calibration.wise_ft_alpha,
            with_states=False,
            with_objects=False,
        )


class Coop(PromptTuning):
    Config = CoopConfig
    learn_context, learn_primitives = True, False


class Csp(PromptTuning):
    Config = CspConfig
    learn_context, learn_primitives = False, True
