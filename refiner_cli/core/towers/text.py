"""The frozen text tower: token embeddings in, text vectors out.

A prompt reads ``prefix context label.. [EOS]`` where the context and the labels are trainable vectors.
What is the same for every kind of tower is here; the kinds are
:class:`~refiner_cli.core.towers.open_clip_text.OpenClipTextTower` and
:class:`~refiner_cli.core.towers.transformers_text.TransformersTextTower`. Text vectors of many pairs are
computed in chunks whose activations are discarded and recomputed in the backward pass, so memory depends on
the size of a chunk and not on the number of pairs.

Shapes: ``E`` text width, ``D`` joint width, ``n`` context tokens, ``N`` prompts, ``S`` states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from refiner_cli.core.runtime.device import to_device
from refiner_cli.core.towers.tokenizers import PromptTokenizer
from refiner_cli.errors import ConfigError

DEFAULT_CHUNK_SIZE = 512  # prompts; training adapts it to the free memory (text_chunks.py)


class TextTower(ABC):
    """A frozen text tower, whose token embeddings can be replaced by vectors of one's own.

    Args:
        width: E.
        depth: its number of blocks.
        context_length: tokens that a prompt may have at most.
        reads_padding: whether a text vector depends on the padding behind the prompt.
    """

    uses_prefix_cache = False

    def __init__(
        self, tokens: PromptTokenizer, *, width: int, depth: int, context_length: int, reads_padding: bool
    ) -> None:
        self.tokens = tokens
        self.width = width
        self.depth = depth
        self.context_length = context_length
        self.reads_padding = reads_padding

    @abstractmethod
    def embed_ids(self, ids: Tensor) -> Tensor:
        """Token embeddings before positions are added, ``T`` int64 -> ``T x E`` float32."""

    @abstractmethod
    def run(self, x: Tensor, end: Tensor | None) -> Tensor:
        """Embedded prompts ``N x T x E`` -> ``N x D`` float32, not normalised.

        Args:
            end: where each prompt ends (``N``); what follows is padding. None: at the last token.
        """

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    def embed_tokens(self, ids: list[int]) -> Tensor:
        """Token embeddings, ``len(ids) x E``."""
        return self.embed_ids(to_device(torch.tensor(ids, dtype=torch.int64), self.device))

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
            ends = [len(row) - 1 for row in ids]
            length = self.context_length if self.reads_padding else max(ends) + 1
            padded = [row + [self.tokens.pad_id] * (length - len(row)) for row in ids]
            x = torch.stack([self.embed_tokens(row) for row in padded])  # N x T x E
            end = None if min(ends) == length - 1 else to_device(torch.tensor(ends), x.device)
            encoded.append(self.run(x, end))
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
        return self.encode_prompts(prefix, states, labels, state, chunk_size)

    def encode_prompts(
        self, prefix: Tensor, states: Tensor | None, labels: Tensor, state: Tensor | None, chunk_size: int
    ) -> Tensor:
        """Every prompt in full: prefix ``n x E``, a state of each (none: without), a label of each."""
        ends = [self.tokens.eos_id]
        length = len(prefix) + (1 if states is None else 2) + 1
        if self.reads_padding:
            ends += [self.tokens.pad_id] * (self.context_length - length)
        tail = self.embed_tokens(ends)

        def prompts(labels: Tensor, state: Tensor | None) -> Tensor:
            N = len(labels)
            middle = [labels[:, None]]
            if states is not None and state is not None:
                middle = [states[state][:, None], *middle]
            x = torch.cat([prefix.expand(N, -1, -1), *middle, tail.expand(N, -1, -1)], 1)  # N x T x E
            end = torch.full((N,), length - 1, device=x.device) if self.reads_padding else None
            return self.run(x, end)

        return in_chunks(prompts, (), labels, state, chunk_size)


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
