"""How many prompts are encoded at once: as many as fit into memory, so that few are recomputed."""

from __future__ import annotations

import torch

from refiner_cli.core.runtime.device import GIB
from refiner_cli.core.towers.text import TextTower

MEMORY_DIVISOR = 4  # a chunk may take this fraction (1/N) of the free memory
MAX_BYTES = 2 * GIB  # more gains little: recomputation is avoided only where all prompts fit
MIN_PROMPTS, MAX_PROMPTS = 32, 8192  # prompts


def prompt_bytes(text: TextTower, tokens: int, precision: torch.dtype) -> int:
    """An upper estimate of what one prompt of ``tokens`` tokens keeps for its backward pass.

    Frozen weights need no stored inputs. What a token keeps in a block are vectors of the text width E:
    the inputs of two norms, query, key and value, the attended heads, and the MLP's 4 E around its
    activation (twice for QuickGELU); and keys and values of every token that it attends to.
    """
    own = 2 if text.uses_prefix_cache else tokens  # with the prefix cache: the label and [EOS]
    vectors = 14 * own + 2 * tokens
    return vectors * text.width * text.depth * precision.itemsize


def pick_chunk_size(
    requested: int, text: TextTower, prompts: int, precision: torch.dtype, context: int, free: int
) -> tuple[int, str]:
    """Prompts per chunk, and why; with ``requested`` 0 they are chosen from the free memory.

    Args:
        prompts: their number, one per pair of the label space.
        context: tokens of the learned context.
        free: bytes of memory that are free.
    """
    if requested:
        return requested, "requested"
    tokens = len(text.tokens.prefix_ids) + context + 3
    if text.reads_padding:
        tokens = text.context_length
    each = prompt_bytes(text, tokens, precision)
    fit = min(free // MEMORY_DIVISOR, MAX_BYTES) // each
    estimate = f"{prompts} prompts keep about {prompts * each / GIB:.1f} GiB, {free / GIB:.1f} GiB are free"
    if fit >= prompts:
        return prompts, f"auto: all at once, {estimate}"
    return max(MIN_PROMPTS, min(fit, MAX_PROMPTS)), f"auto: in chunks, {estimate}"
