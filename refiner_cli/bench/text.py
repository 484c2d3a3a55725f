"""Text encoding: the prefix cache against prompts padded to 8 tokens (peers) or the full context (CLIP)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from refiner_cli.bench.measure import BenchResult, median_seconds
from refiner_cli.core.runtime.device import attention_kernels, free_memory
from refiner_cli.core.towers.text import TextTower
from refiner_cli.core.towers.text_chunks import pick_chunk_size
from refiner_cli.data.labels import LabelSpace

SHORT_LENGTH = 8  # tokens per prompt in CSP and later methods
SAVED_VECTORS = 24  # text-width vectors that a block keeps per token for backward; an upper estimate


@dataclass
class PromptVectors:
    """The learnable vectors of a label space (``n x E``, ``S x E``, ``O x E``) and the pairs' indices."""

    context: Tensor
    states: Tensor
    objects: Tensor
    state: Tensor
    object: Tensor

    @classmethod
    def of(cls, text: TextTower, space: LabelSpace) -> PromptVectors:
        context = text.embed_context("a photo of")
        device = context.device
        index = (torch.from_numpy(i).to(device) for i in (space.pair_state, space.pair_object))
        words = (torch.stack([text.embed_label(w) for w in names]) for names in (space.states, space.objects))
        return cls(context, *words, *index)

    def first(self, count: int) -> PromptVectors:
        return PromptVectors(self.context, self.states, self.objects, self.state[:count], self.object[:count])

    def learnable(self) -> list[Tensor]:
        return [self.context, self.states, self.objects]


def with_prefix_cache(text: TextTower, prompts: PromptVectors, chunk_size: int) -> Tensor:
    objects = prompts.objects[prompts.object]
    return text.encode_pairs(prompts.context, prompts.states, objects, prompts.state, chunk_size=chunk_size)


def padded(text: TextTower, prompts: PromptVectors, length: int, chunk_size: int) -> Tensor:
    """Every prompt in full, padded to ``length`` tokens, as published code does."""
    head = torch.cat([text.embed_tokens(list(text.tokens.prefix_ids)), prompts.context])
    end = len(head) + 2
    tail = text.embed_tokens([text.tokens.eos_id, *[text.tokens.pad_id] * (length - end - 1)])
    found = []
    objects, states = prompts.objects[prompts.object], prompts.state
    for labels, state in zip(objects.split(chunk_size), states.split(chunk_size), strict=True):
        C = len(labels)
        middle = torch.stack([prompts.states[state], labels], 1)
        x = torch.cat([head.expand(C, -1, -1), middle, tail.expand(C, -1, -1)], 1)
        found.append(text.run(x, torch.full((C,), end, device=x.device)))
    return torch.cat(found)


def bench_text(
    text: TextTower, space: LabelSpace, *, rounds: int, limit: int, device: torch.device
) -> Iterator[BenchResult]:
    """Forward, and forward with backward.

    Args:
        limit: prompts to measure the full context with, extrapolated to all of them; 0: all. The backward
            pass of padded prompts is measured with as many as fit into memory.
    """
    prompts = PromptVectors.of(text, space)
    P = len(space.pairs)
    chunk_size, _ = pick_chunk_size(0, text, P, torch.float32, len(prompts.context), free_memory(device))
    own = "prefix cache" if text.uses_prefix_cache else "plain"
    if text.reads_padding:
        with torch.no_grad():
            taken = median_seconds(
                {own: lambda: with_prefix_cache(text, prompts, chunk_size)}, device, rounds=rounds
            )
        yield BenchResult(f"text forward, {P} pairs: {own}", taken[own], "s")
        return
    full = text.context_length
    few = min(limit or P, P)
    with torch.no_grad():
        fast = median_seconds(
            {
                own: lambda: with_prefix_cache(text, prompts, chunk_size),
                "short": lambda: padded(text, prompts, SHORT_LENGTH, chunk_size),
            },
            device,
            rounds=rounds,
        )
        slow = median_seconds(
            {"full": lambda: padded(text, prompts.first(few), full, chunk_size)}, device, rounds=1
        )
    what = f"text forward, {P} pairs"
    yield from compared(what, own, fast[own], {
        f"{SHORT_LENGTH} tokens": fast["short"],
        f"{full} tokens{extrapolation(few, P)}": slow["full"] * P / few,
    })  # fmt: skip
    for vector in prompts.learnable():
        vector.requires_grad_()
    keep = SHORT_LENGTH * SAVED_VECTORS * text.width * text.depth * 4  # bytes of a padded prompt
    few = max(1, min(P, free_memory(device) // 3 // keep))

    def both(way: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(way().square().sum(), prompts.learnable())

    short = prompts.first(few)
    with attention_kernels(device):
        fast = median_seconds(
            {
                own: both(lambda: with_prefix_cache(text, prompts, chunk_size)),
                "short": both(lambda: padded(text, short, SHORT_LENGTH, chunk_size)),
            },
            device,
            rounds=rounds,
        )
    what = f"text forward and backward, {P} pairs"
    yield from compared(
        what, own, fast[own], {f"{SHORT_LENGTH} tokens{extrapolation(few, P)}": fast["short"] * P / few}
    )


def extrapolation(few: int, every: int) -> str:
    return "" if few == every else f" (extrapolated from {few})"


def compared(what: str, own: str, seconds_own: float, others: dict[str, float]) -> Iterator[BenchResult]:
    for name, value in others.items():
        yield BenchResult(f"{what}: {name}", value, "s")
    for name, value in others.items():
        yield BenchResult(f"{what}: {own}", seconds_own, "s", name, value / seconds_own)
