"""The frozen text tower: token embeddings in, text vectors out.

A prompt reads ``prefix context label.. [EOS]`` where the context and the labels are trainable vectors.
Causal towers share the encoding of prompt prefixes (:mod:`~refiner_cli.core.towers.prefix_cache`);
others encode every prompt in full. Text vectors of many pairs are computed in chunks whose activations
are discarded and recomputed in the backward pass, so memory depends on the size of a chunk and not on the
number of pairs.

Shapes: ``E`` text width, ``D`` joint width, ``n`` context tokens, ``N`` prompts, ``S`` states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from refiner_cli.core.runtime.device import to_device
from refiner_cli.core.towers import prefix_cache
from refiner_cli.core.towers.tokenizers import PromptTokenizer
from refiner_cli.errors import ConfigError

DEFAULT_CHUNK_SIZE = 512  # prompts; training adapts it to the free memory (text_chunks.py)


class TextTower:
    """open_clip's own text transformer, in a CLIP or a CustomTextCLIP."""

    def __init__(self, clip: nn.Module, tokens: PromptTokenizer) -> None:
        text = getattr(clip, "text", clip)
        if not isinstance(text, open_clip.CLIP | open_clip.transformer.TextTransformer):
            raise ConfigError(
                f"The backbone's text tower ({type(text).__name__}) is not open_clip's own transformer.",
                hint="Choose a backbone such as ViT-L-14, ViT-B-32 or ViT-B-16-SigLIP.",
            )
        self.text = text
        self.tokens = tokens
        self.has_class_token = getattr(text, "cls_emb", None) is not None  # behind the prompt (CoCa)
        # CoCa's class token reads one padding token, so a prompt has to leave room for one.
        self.context_length: int = text.context_length - self.has_class_token
        self.width: int = text.token_embedding.embedding_dim
        self.blocks: list[nn.Module] = list(text.transformer.resblocks)
        self.pool = text.text_pool_type if isinstance(text, open_clip.CLIP) else text.pool_type
        self.causal = text.attn_mask is not None and self.pool in {"argmax", "eos"}
        self.uses_prefix_cache = (
            not self.has_class_token
            and self.causal
            and all(
                isinstance(b, ResidualAttentionBlock) and isinstance(b.attn, nn.MultiheadAttention)
                for b in self.blocks
            )
        )

    def embed_tokens(self, ids: list[int]) -> Tensor:
        """Token embeddings, ``len(ids) x E``."""
        table: Tensor = self.text.token_embedding.weight
        return table[to_device(torch.tensor(ids, dtype=torch.int64), table.device)].float()

    def embed_context(self, words: str) -> Tensor:
        """Token embeddings of a context such as "a photo of", ``n x E``."""
        return self.embed_tokens(self.tokens.encode(words))

    def embed_label(self, name: str) -> Tensor:
        """One vector for a state or an object, ``E``: the mean of its token embeddings."""
        ids = self.tokens.encode_inside(label_to_text(name))
        if not ids:
            raise ConfigError(f"The name {name!r} contains no word that the text tower's tokenizer knows.")
        return self.embed_tokens(ids).mean(0)

    def encode_texts(self, texts: list[str], *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Tensor:
        """Texts -> ``N x D`` float32, not normalised, from the frozen token embeddings."""
        encoded = []
        for start in range(0, len(texts), chunk_size):
            ids = [self._token_ids(text) for text in texts[start : start + chunk_size]]
            length = max(map(len, ids)) if self.causal else self.context_length
            padded = [row + [self.tokens.pad_id] * (length - len(row)) for row in ids]
            x = torch.stack([self.embed_tokens(row) for row in padded])  # N x T x E
            x = x + self.text.positional_embedding[:length]
            encoded.append(
                self.run_transformer(x, to_device(torch.tensor([len(row) - 1 for row in ids]), x.device))
            )
        return torch.cat(encoded)

    def _token_ids(self, text: str) -> list[int]:
        ids = self.tokens.ids(text)
        if len(ids) > self.context_length:
            raise ConfigError(
                f"The prompt {text!r} has {len(ids)} tokens; the text tower takes {self.context_length}."
            )
        return ids

    def encode(self, context: Tensor, labels: Tensor, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Tensor:
        """Prompts ``context label``: ``n x E`` and ``N x E`` -> ``N x D`` float32, not normalised."""
        return self._encode(context, None, labels, None, chunk_size)

    def encode_pairs(
        self,
        context: Tensor,
        states: Tensor,
        objects: Tensor,
        state: Tensor,
        *,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
    ) -> Tensor:
        """Prompts ``context state object``, one per pair.

        Args:
            context: ``n x E``.
            states: ``S x E``, the state vectors.
            objects: ``P x E``, the object vector of each pair.
            state: ``P`` int64, the state of each pair.
            chunk_size: prompts encoded at once.

        Returns:
            ``P x D`` float32, not normalised.
        """
        return self._encode(context, states, objects, state, chunk_size)

    def _encode(
        self, context: Tensor, states: Tensor | None, labels: Tensor, state: Tensor | None, chunk_size: int
    ) -> Tensor:
        length = len(self.tokens.prefix_ids) + len(context) + (1 if states is None else 2) + 1
        if length > self.context_length:
            raise ConfigError(
                f"The prompts have {length} tokens; the text tower takes {self.context_length}.",
                hint="Shorten model.prompt_init.",
            )
        prefix = torch.cat([self.embed_tokens(list(self.tokens.prefix_ids)), context])
        run = self._encode_with_prefix_cache if self.uses_prefix_cache else self._encode_full
        return run(prefix, states, labels, state, chunk_size)

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

    def _encode_full(
        self, prefix: Tensor, states: Tensor | None, labels: Tensor, state: Tensor | None, chunk_size: int
    ) -> Tensor:
        """Every prompt in full, with its padding where the tower is not causal and therefore reads it."""
        ends = [self.tokens.eos_id]
        length = len(prefix) + (1 if states is None else 2) + 1
        if not self.causal:
            ends += [self.tokens.pad_id] * (self.context_length - length)
        tail = self.embed_tokens(ends)

        def prompts(labels: Tensor, state: Tensor | None) -> Tensor:
            N = len(labels)
            middle = [labels[:, None]]
            if states is not None and state is not None:
                middle = [states[state][:, None], *middle]
            x = torch.cat([prefix.expand(N, -1, -1), *middle, tail.expand(N, -1, -1)], 1)  # N x T x E
            x = x + self.text.positional_embedding[: x.shape[1]]
            return self.run_transformer(x, torch.full((N,), length - 1, device=x.device))

        return in_chunks(prompts, (), labels, state, chunk_size)

    def run_transformer(self, x: Tensor, end: Tensor) -> Tensor:
        """Embedded prompts ``N x T x E`` and where each ends (``N``) -> ``N x D``."""
        if self.has_class_token:
            return self._run_with_class_token(x, end)
        mask = self.text.attn_mask
        x = self.text.transformer(x, attn_mask=None if mask is None else mask[: x.shape[1], : x.shape[1]])
        if self.pool in {"first", "last"}:
            return self._project(x[:, 0 if self.pool == "first" else -1])
        return self._project(x[torch.arange(len(x), device=x.device), end])

    def _run_with_class_token(self, x: Tensor, end: Tensor) -> Tensor:
        """As :meth:`run_transformer` for CoCa, whose last position is a class token.

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


def in_chunks(
    encode: Callable[..., Tensor],
    fixed: Sequence[Tensor | None],
    labels: Tensor,
    state: Tensor | None,
    size: int,
) -> Tensor:
    """``encode(*fixed, labels, state)`` over chunks of at most ``size`` prompts.

    With more than one chunk the backward pass recomputes each chunk's activations.
    """
    rows = labels.split(size)
    states: Sequence[Tensor | None] = [None] * len(rows) if state is None else state.split(size)
    chunks = list(zip(rows, states, strict=True))
    if len(chunks) == 1 or not torch.is_grad_enabled():
        return torch.cat([encode(*fixed, *chunk) for chunk in chunks])
    return torch.cat([checkpoint(encode, *fixed, *chunk, use_reentrant=False) for chunk in chunks])


def label_to_text(name: str) -> str:
    """A label as text for a prompt: "Faux.Leather" -> "faux leather", "ancient_city" -> "ancient city"."""
    return name.replace(".", " ").replace("_", " ").lower()
