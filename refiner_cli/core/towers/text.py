"""The frozen text tower, opened up: prompts of word vectors in, text vectors out.

A prompt reads ``head context word.. [EOS]`` where the context and the words are free vectors.
Causal towers go through the prompt trie; others take the plain path. Text vectors for many pairs
are computed in chunks whose activations are thrown away and computed again in the backward pass,
so memory depends on the chunk and not on the number of pairs.

Shapes: ``E`` text width, ``D`` joint width, ``n`` context tokens, ``N`` prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from refiner_cli.core.towers import prefix_cache as trie
from refiner_cli.errors import ConfigError

CHUNK = 512  # prompts of one chunk where nobody says otherwise; see core/chunk.py


@dataclass(frozen=True)
class Tokens:
    """What a tokenizer puts around a text, and how it splits one."""

    split: Callable[[str], list[int]]  # text -> ids without special tokens
    head: tuple[int, ...]  # before the text
    end: int  # right after it
    pad: int  # up to the context length
    save: Callable[[str], object] | None = None  # writes the tokenizer to a folder, if it is not CLIP's

    @classmethod
    def of(cls, tokenizer: Any, context_length: int, split: Callable[[str], list[int]]) -> Tokens:
        """Find head, end and padding by looking at how ``tokenizer`` wraps one word."""
        ids = tokenizer(["apple"], context_length=context_length)[0].tolist()
        word = split("apple")
        start = next(i for i in range(len(ids)) if ids[i : i + len(word)] == word)
        tail = ids[start + len(word) :]
        return cls(
            split=split,
            head=tuple(ids[:start]),
            end=tail[0],
            pad=tail[-1],
            save=getattr(tokenizer, "save_pretrained", None),
        )


class TextTower:
    """open_clip's own text transformer, in a CLIP or a CustomTextCLIP."""

    def __init__(self, clip: nn.Module, tokens: Tokens) -> None:
        text = getattr(clip, "text", clip)
        if not isinstance(text, open_clip.CLIP | open_clip.transformer.TextTransformer):
            raise ConfigError(
                f"The backbone's text tower ({type(text).__name__}) is not open_clip's own transformer.",
                hint="Choose a backbone such as ViT-L-14, ViT-B-32 or ViT-B-16-SigLIP.",
            )
        if getattr(text, "cls_emb", None) is not None:
            raise ConfigError("Text towers with an appended class token (CoCa) are not supported.")
        self.text = text
        self.tokens = tokens
        self.context_length: int = text.context_length
        self.chunk = CHUNK  # prompts encoded at once
        self.width: int = text.token_embedding.embedding_dim
        self.blocks: list[nn.Module] = list(text.transformer.resblocks)
        self.pool = text.text_pool_type if isinstance(text, open_clip.CLIP) else text.pool_type
        self.causal = text.attn_mask is not None and self.pool in {"argmax", "eos"}
        self.shares = self.causal and all(
            isinstance(b, ResidualAttentionBlock) and isinstance(b.attn, nn.MultiheadAttention)
            for b in self.blocks
        )

    def token_rows(self, ids: list[int]) -> Tensor:
        """Token embeddings, ``len(ids) x E``."""
        table: Tensor = self.text.token_embedding.weight
        return table[torch.tensor(ids, device=table.device)].float()

    def context(self, words: str) -> Tensor:
        """Token embeddings of a context such as "a photo of", ``n x E``."""
        return self.token_rows(self.tokens.split(words))

    def word(self, name: str) -> Tensor:
        """One vector for a state or an object, ``E``: the mean of its token embeddings."""
        ids = self.tokens.split(spoken(name))
        if not ids:
            raise ConfigError(f"The name {name!r} holds no word that the text tower can read.")
        return self.token_rows(ids).mean(0)

    def encode_texts(self, texts: list[str]) -> Tensor:
        """Plain texts, token by token -> ``N x D`` float32, not normalised. No gradients, nothing learned."""
        found = []
        for start in range(0, len(texts), self.chunk):
            ids = [self._ids(text) for text in texts[start : start + self.chunk]]
            length = max(map(len, ids)) if self.causal else self.context_length
            padded = [row + [self.tokens.pad] * (length - len(row)) for row in ids]
            x = (
                torch.stack([self.token_rows(row) for row in padded])
                + self.text.positional_embedding[:length]
            )
            found.append(self.finish(x, torch.tensor([len(row) - 1 for row in ids], device=x.device)))
        return torch.cat(found)

    def _ids(self, text: str) -> list[int]:
        ids = [*self.tokens.head, *self.tokens.split(text), self.tokens.end]
        if len(ids) > self.context_length:
            raise ConfigError(
                f"The prompt {text!r} needs {len(ids)} tokens; the text tower takes {self.context_length}."
            )
        return ids

    def encode(self, context: Tensor, words: Tensor) -> Tensor:
        """Prompts ``context word``: ``n x E`` and ``N x E`` -> ``N x D`` float32, not normalised."""
        return self._encode(context, None, words, None)

    def encode_pairs(self, context: Tensor, parents: Tensor, words: Tensor, parent: Tensor) -> Tensor:
        """Prompts ``context state object``, one a pair.

        Args:
            context: ``n x E``.
            parents: ``S x E``, the state vectors.
            words: ``P x E``, the object vector of each pair.
            parent: ``P`` int64, the state of each pair.

        Returns:
            ``P x D`` float32, not normalised.
        """
        return self._encode(context, parents, words, parent)

    def _encode(
        self, context: Tensor, parents: Tensor | None, words: Tensor, parent: Tensor | None
    ) -> Tensor:
        length = len(self.tokens.head) + len(context) + (1 if parents is None else 2) + 1
        if length > self.context_length:
            raise ConfigError(
                f"A prompt needs {length} tokens and the text tower takes {self.context_length}.",
                hint="Shorten model.context.",
            )
        prefix = torch.cat([self.token_rows(list(self.tokens.head)), context])
        run = self._through_trie if self.shares else self._in_full
        return run(prefix, parents, words, parent)

    def _through_trie(
        self, prefix: Tensor, parents: Tensor | None, words: Tensor, parent: Tensor | None
    ) -> Tensor:
        at = self.text.positional_embedding
        depth = len(prefix)
        stem = trie.grow(self.blocks, prefix + at[:depth], None if parents is None else parents + at[depth])
        first = depth + (parents is not None)
        end = self.token_rows([self.tokens.end])[0] + at[first + 1]

        def leaves(
            keys: Tensor,
            values: Tensor,
            keys1: Tensor | None,
            values1: Tensor | None,
            rows: Tensor,
            up: Tensor | None,
        ) -> Tensor:
            grown = trie.Stem(keys, values, keys1, values1)
            return self._project(trie.leaves(self.blocks, grown, rows + at[first], end, up))

        fixed = (stem.prefix_keys, stem.prefix_values, stem.parent_keys, stem.parent_values)
        parts = chunked(words, parent, self.chunk)
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([leaves(*fixed, *part) for part in parts])
        return torch.cat([checkpoint(leaves, *fixed, *part, use_reentrant=False) for part in parts])

    def _in_full(
        self, prefix: Tensor, parents: Tensor | None, words: Tensor, parent: Tensor | None
    ) -> Tensor:
        """Every prompt whole. A tower that is not causal also reads the padding, so none is cut off."""
        ends = [self.tokens.end]
        length = len(prefix) + (1 if parents is None else 2) + 1
        if not self.causal:
            ends += [self.tokens.pad] * (self.context_length - length)
        tail = self.token_rows(ends)

        def whole(rows: Tensor, up: Tensor | None) -> Tensor:
            N = len(rows)
            middle = (
                [rows[:, None]] if parents is None or up is None else [parents[up][:, None], rows[:, None]]
            )
            x = torch.cat([prefix.expand(N, -1, -1), *middle, tail.expand(N, -1, -1)], 1)  # N x T x E
            x = x + self.text.positional_embedding[: x.shape[1]]
            return self.finish(x, torch.full((N,), length - 1, device=x.device))

        parts = chunked(words, parent, self.chunk)
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([whole(*part) for part in parts])
        return torch.cat([checkpoint(whole, *part, use_reentrant=False) for part in parts])

    def finish(self, x: Tensor, end: Tensor) -> Tensor:
        """Embedded prompts ``N x T x E`` and where each ends (``N``) -> ``N x D``."""
        mask = self.text.attn_mask
        x = self.text.transformer(x, attn_mask=None if mask is None else mask[: x.shape[1], : x.shape[1]])
        if self.pool in {"first", "last"}:
            return self._project(x[:, 0 if self.pool == "first" else -1])
        return self._project(x[torch.arange(len(x), device=x.device), end])

    def _project(self, x: Tensor) -> Tensor:
        """Hidden states ``C x E`` -> text vectors ``C x D`` float32."""
        x = self.text.ln_final(x)
        projection = self.text.text_projection
        if isinstance(projection, nn.Linear):
            x = projection(x)
        elif projection is not None:
            x = x @ projection
        return x.float()


def chunked(words: Tensor, parent: Tensor | None, size: int) -> list[tuple[Tensor, Tensor | None]]:
    """Cut ``N x E`` words and their parents into pieces of at most ``size`` rows."""
    rows = words.split(size)
    ups: list[Tensor | None] = [None] * len(rows) if parent is None else list(parent.split(size))
    return list(zip(rows, ups, strict=True))


def spoken(name: str) -> str:
    """A label as a prompt says it: "Faux.Leather" -> "faux leather", "ancient_city" -> "ancient city"."""
    return name.replace(".", " ").replace("_", " ").lower()
