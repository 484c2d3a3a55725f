"""How many prompts are encoded at once: as many as fit, so that little is computed twice."""

from __future__ import annotations

import torch

from refiner_cli.core.runtime.device import GIB, free_memory
from refiner_cli.core.towers.text import TextTower

SHARE = 4  # a chunk may take one part in so many of the free memory
MOST = 2 * GIB  # more pays little: a second pass is saved only where everything fits
LEAST, LARGEST = 32, 8192  # prompts


def prompt_bytes(text: TextTower, tokens: int, precision: torch.dtype) -> int:
    """About what one prompt of ``tokens`` tokens keeps for its backward pass, rather more than less.

    Frozen weights need no inputs kept. What remains of a token in a block are vectors of the text width E:
    the inputs of two norms, query, key and value, the attended heads, and the MLP's 4 E around its
    activation (twice for QuickGELU); and keys and values of every token that it attends to.
    """
    own = 2 if text.shares else tokens  # the trie encodes the word and [EOS] only
    vectors = 14 * own + 2 * tokens
    return vectors * text.width * len(text.blocks) * precision.itemsize


def pick_chunk(
    wanted: int, text: TextTower, prompts: int, device: torch.device, precision: torch.dtype, context: int
) -> tuple[int, str]:
    """Prompts of one chunk, and why; ``wanted`` 0 leaves it to the free memory.

    Args:
        prompts: how many there are, the pairs of the label space.
        context: tokens of the learned context.
    """
    if wanted:
        return wanted, "asked for"
    tokens = len(text.tokens.head) + context + 3 if text.causal else text.context_length
    each = prompt_bytes(text, tokens, precision)
    free = free_memory(device)
    fit = min(free // SHARE, MOST) // each
    told = f"{prompts} prompts keep about {prompts * each / GIB:.1f} GiB, {free / GIB:.1f} GiB are free"
    if fit >= prompts:
        return prompts, f"auto: all at once, {told}"
    return max(LEAST, min(fit, LARGEST)), f"auto: in chunks, {told}"
