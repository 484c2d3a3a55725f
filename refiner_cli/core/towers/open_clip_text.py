"""open_clip's own text transformer as a text tower, in a CLIP, a CustomTextCLIP or a CoCa.

Causal towers share the encoding of prompt prefixes (:mod:`~refiner_cli.core.towers.prefix_cache`); the
others encode every prompt in full, with its padding. Shapes as in :mod:`~refiner_cli.core.towers.text`.
"""

from __future__ import annotations

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from refiner_cli.core.towers import prefix_cache
from refiner_cli.core.towers.text import TextTower, in_chunks
from refiner_cli.core.towers.tokenizers import PromptTokenizer


class OpenClipTextTower(TextTower):
    """The text transformer of open_clip.

    Args:
        text: the model itself where it is a CLIP, else its ``text``.
    """

    def __init__(
        self, text: open_clip.CLIP | open_clip.transformer.TextTransformer, tokens: PromptTokenizer
    ) -> None:
        self.text = text
        self.has_class_token = getattr(text, "cls_emb", None) is not None  # behind the prompt (CoCa)
        self.blocks: list[nn.Module] = list(text.transformer.resblocks)
        self.pool = text.text_pool_type if isinstance(text, open_clip.CLIP) else text.pool_type
        self.causal = text.attn_mask is not None and self.pool in {"argmax", "eos"}
        super().__init__(
            tokens,
            width=text.token_embedding.embedding_dim,
            depth=len(self.blocks),
            # CoCa's class token reads one padding token, so a prompt has to leave room for one.
            context_length=text.context_length - self.has_class_token,
            reads_padding=not self.causal,
        )
        self.uses_prefix_cache = (
            not self.has_class_token
            and self.causal
            and all(
                isinstance(b, ResidualAttentionBlock) and isinstance(b.attn, nn.MultiheadAttention)
                for b in self.blocks
            )
        )

    @property
    def device(self) -> torch.device:
        return self.text.token_embedding.weight.device

    def embed_ids(self, ids: Tensor) -> Tensor:
        return self.text.token_embedding.weight[ids].float()

    def encode_prompts(
        self, prefix: Tensor, states: Tensor | None, labels: Tensor, state: Tensor | None, chunk_size: int
    ) -> Tensor:
        encode = self._encode_with_prefix_cache if self.uses_prefix_cache else super().encode_prompts
        return encode(prefix, states, labels, state, chunk_size)

    def _encode_with_prefix_cache(
        self, prefix: Tensor, states: Tensor | None, labels: Tensor, state: Tensor | None, chunk_size: int
    ) -> Tensor:
        position = self.text.positional_embedding
        n = len(prefix)
        cache = prefix_cache.encode_prefix(
            self.blocks, prefix + position[:n], None if states is None else states + position[n]
        )
        first = n + (states is not None)
        end = self.embed_tokens([self.tokens.eos_id])[0] + position[first + 1]

        def suffixes(
            keys: Tensor,
            values: Tensor,
            state_keys: Tensor | None,
            state_values: Tensor | None,
            labels: Tensor,
            state: Tensor | None,
        ) -> Tensor:
            kv = prefix_cache.PrefixKV(keys, values, state_keys, state_values)
            return self._project(
                prefix_cache.encode_suffixes(self.blocks, kv, labels + position[first], end, state)
            )

        fixed = (cache.prefix_keys, cache.prefix_values, cache.state_keys, cache.state_values)
        return in_chunks(suffixes, fixed, labels, state, chunk_size)

    def run(self, x: Tensor, end: Tensor | None) -> Tensor:
        x = x + self.text.positional_embedding[: x.shape[1]]
        if end is None:
            end = torch.full((len(x),), x.shape[1] - 1, device=x.device)
        if self.has_class_token:
            return self._run_with_class_token(x, end)
        mask = self.text.attn_mask
        x = self.text.transformer(x, attn_mask=None if mask is None else mask[: x.shape[1], : x.shape[1]])
        if self.pool in {"first", "last"}:
            return self._project(x[:, 0 if self.pool == "first" else -1])
        return self._project(x[torch.arange(len(x), device=x.device), end])

    def _run_with_class_token(self, x: Tensor, end: Tensor) -> Tensor:
        """As :meth:`run` for CoCa, whose last position is a class token.

        The mask of the published weights is shifted by one: the class token attends to the prompt and to the
        first padding token, and not to itself. More padding changes nothing and is left out.
        """
        N, T, _ = x.shape
        position = self.text.positional_embedding
        padding = self.embed_tokens([self.tokens.pad_id]) + position[T]
        class_token = (self.text.cls_emb + position[-1])[None]
        x = torch.cat([x, padding.expand(N, 1, -1), class_token.expand(N, 1, -1)], 1)  # N x (T + 2) x E
        place = torch.arange(T + 2, device=x.device)
        readable = place <= (end + 1)[:, None]  # N x (T + 2): the prompt and the padding token behind it
        if getattr(self.text, "correct_cls_mask", False):
            readable = (place <= end[:, None]) | (place == T + 1)
        allowed = readable[:, None] & (place <= place[:, None])  # N x (T + 2) x (T + 2)
        mask = torch.zeros(allowed.shape, dtype=x.dtype, device=x.device).masked_fill(~allowed, -torch.inf)
        x = self.text.transformer(x, attn_mask=mask.repeat_interleave(self.text.heads, 0))
        return self._project(x[:, -1])

    def _project(self, x: Tensor) -> Tensor:
        """Hidden states ``C x E`` -> text vectors ``C x D`` float32."""
        x = self.text.ln_final(x)
        projection = self.text.text_projection
        if isinstance(projection, nn.Linear):
            x = projection(x)
        elif projection is not None:
            x = x @ projection
        return x.float()
