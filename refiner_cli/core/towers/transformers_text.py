"""Text towers of the transformers library, as open_clip's HFTextEncoder wraps them.

XLM-R, mT5 and NLLB read other languages. They attend in both directions, so no prompt shares the encoding of
its beginning with another; padding is masked, so prompts are encoded without it. Shapes as in
:mod:`~refiner_cli.core.towers.text`.
"""

from __future__ import annotations

import torch
from open_clip.hf_model import HFTextEncoder, MaxPooler
from torch import Tensor

from refiner_cli.core.towers.text import TextTower
from refiner_cli.core.towers.tokenizers import PromptTokenizer
from refiner_cli.errors import ConfigError


class TransformersTextTower(TextTower):
    """open_clip's HFTextEncoder: an encoder of the transformers library, a pooler and a projection."""

    def __init__(
        self, text: HFTextEncoder, tokens: PromptTokenizer, *, depth: int, context_length: int
    ) -> None:
        if isinstance(text.pooler, MaxPooler):
            raise ConfigError(
                "Text towers with open_clip's max_pooler are not supported: it cannot read masks."
            )
        self.text = text
        self.table = text.transformer.get_input_embeddings()  # NLLB's multiplies by a constant
        super().__init__(
            tokens,
            width=self.table.embedding_dim,
            depth=depth,
            context_length=context_length,
            reads_padding=False,
        )

    @property
    def device(self) -> torch.device:
        return self.table.weight.device

    def embed_ids(self, ids: Tensor) -> Tensor:
        return self.table(ids).float()

    def run(self, x: Tensor, end: Tensor | None) -> Tensor:
        place = torch.arange(x.shape[1], device=x.device)
        last = x.new_full((len(x),), x.shape[1] - 1) if end is None else end
        mask = (place <= last[:, None]).long()  # N x T
        # Without padding no mask: the library would look into it, which waits for the device.
        out = self.text.transformer(inputs_embeds=x, attention_mask=None if end is None else mask)
        return self.text.proj(self.text.pooler(out, mask)).float()
