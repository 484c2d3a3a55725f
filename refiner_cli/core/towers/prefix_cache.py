"""The prefix cache: shared beginnings of prompts are encoded once.

A causal text tower's hidden state of token i depends on the tokens up to i alone. All composition
prompts read ``[SOS] context state object [EOS]``, so the shared prefix is encoded once, the state
position once per state, and only object and [EOS] once per pair, each layer attending to the stored
keys and values of the tokens before. The result equals encoding every prompt in full up to rounding, and
is differentiable in all inputs.

Shapes: ``n`` prefix tokens, ``S`` states, ``C`` prompts (pairs), ``E`` text width, ``H``
heads, ``d = E / H``, ``layers`` blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class PrefixKV:
    """Keys and values that the suffixes attend to."""

    prefix_keys: Tensor  # layers x H x n x d
    prefix_values: Tensor  # layers x H x n x d
    state_keys: Tensor | None  # layers x S x H x d
    state_values: Tensor | None  # layers x S x H x d


def qkv_heads(block: ResidualAttentionBlock, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of normalised tokens: ``C x t x E`` -> three of ``C x H x t x d``."""
    C, t, _ = x.shape
    qkv = F.linear(x, block.attn.in_proj_weight, block.attn.in_proj_bias)
    # C x t x 3E -> 3 x C x H x t x d
    q, k, v = qkv.view(C, t, 3, block.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    return q, k, v


def finish_block(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    """Finish a block: tokens ``C x t x E`` and attended heads ``C x H x t x d`` -> ``C x t x E``."""
    merged = attended.transpose(1, 2).flatten(2)  # C x t x E
    x = x + block.ls_1(F.linear(merged, block.attn.out_proj.weight, block.attn.out_proj.bias))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def encode_prefix(
    blocks: Sequence[ResidualAttentionBlock], prefix: Tensor, states: Tensor | None
) -> PrefixKV:
    """Encode the prefix ``n x E`` and, each right after it, the states ``S x E``, positions included."""
    x, y = prefix[None], None if states is None else states[:, None]  # 1 x n x E, S x 1 x E
    cached_prefix, cached_states = [], []
    for block in blocks:
        q, k, v = qkv_heads(block, block.ln_1(x))
        cached_prefix.append((k[0], v[0]))
        if y is not None:
            q1, k1, v1 = qkv_heads(block, block.ln_1(y))
            cached_states.append((k1[:, :, 0], v1[:, :, 0]))
            expand = (len(y), -1, -1, -1)
            keys, values = torch.cat([k.expand(expand), k1], 2), torch.cat([v.expand(expand), v1], 2)
            y = finish_block(block, y, F.scaled_dot_product_attention(q1, keys, values))
        x = finish_block(block, x, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    return PrefixKV(
        torch.stack([k for k, _ in cached_prefix]),
        torch.stack([v for _, v in cached_prefix]),
        torch.stack([k for k, _ in cached_states]) if cached_states else None,
        torch.stack([v for _, v in cached_states]) if cached_states else None,
    )


def encode_suffixes(
    blocks: Sequence[ResidualAttentionBlock],
    cache: PrefixKV,
    labels: Tensor,
    end: Tensor,
    state: Tensor | None,
) -> Tensor:
    """Encode ``label [EOS]`` after the cached prefix and return the hidden state at [EOS], ``C x E``.

    Args:
        labels: ``C x E``, with positions added.
        end: ``E``, the [EOS] embedding, with its position added.
        state: ``C`` int64, the state of each prompt; None: the label follows the prefix itself.
    """
    C = len(labels)
    # Unbound once: indexing layer by layer would give a gradient of the size of the cache per layer.
    prefix = list(zip(cache.prefix_keys.unbind(), cache.prefix_values.unbind(), strict=True))
    state_kv: list[tuple[Tensor, Tensor]] = []
    if state is not None and cache.state_keys is not None and cache.state_values is not None:
        state_kv = list(zip(cache.state_keys.unbind(), cache.state_values.unbind(), strict=True))
    x = torch.stack([labels, end.expand_as(labels)], 1)  # C x 2 x E
    for i, block in enumerate(blocks):
        q, k, v = qkv_heads(block, block.ln_1(x))
        keys, values = ([part.expand(C, -1, -1, -1)] for part in prefix[i])
        if state_kv:
            keys.append(state_kv[i][0][state][:, :, None])  # C x H x 1 x d
            values.append(state_kv[i][1][state][:, :, None])
        if i == len(blocks) - 1:  # only [EOS] is read after the last block
            q, x = q[:, :, 1:], x[:, 1:]
        all_keys, all_values = torch.cat([*keys, k], 2), torch.cat([*values, v], 2)
        mask = torch.ones(q.shape[2], all_keys.shape[2], dtype=torch.bool, device=x.device)
        if len(mask) == 2:
            mask[0, -1] = False  # the label does not attend to [EOS]
        x = finish_block(block, x, F.scaled_dot_product_attention(q, all_keys, all_values, attn_mask=mask))
    return x[:, 0]
