"""Text encoding: the prompt trie beside prompts padded to 8 tokens (peers) and to the full context (CLIP)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from refiner_cli.bench.measure import Result, seconds
from refiner_cli.core.runtime.device import attention_kernels, free_memory
from refiner_cli.core.towers.text import TextTower, chunked
from refiner_cli.core.towers.text_chunks import pick_chunk
from refiner_cli.data.labels import LabelSpace

PEERS = 8  # tokens of CSP and its followers
BACKWARD = 24  # vectors of the text width that a padded token keeps in a block, rather more than less


@dataclass
class Prompts:
    """The free vectors of a label space: ``n x E``, ``S x E``, ``O x E``, and the pairs' indices."""

    context: Tensor
    states: Tensor
    objects: Tensor
    parent: Tensor
    leaf: Tensor

    @classmethod
    def of(cls, text: TextTower, space: LabelSpace) -> Prompts:
        context = text.context("a photo of")
        device = context.device
        index = (torch.from_numpy(i).to(device) for i in (space.pair_state, space.pair_object))
        words = (torch.stack([text.word(w) for w in names]) for names in (space.states, space.objects))
        return cls(context, *words, *index)

    def first(self, count: int) -> Prompts:
        return Prompts(self.context, self.states, self.objects, self.parent[:count], self.leaf[:count])

    def learnable(self) -> list[Tensor]:
        return [self.context, self.states, self.objects]


def through_trie(text: TextTower, prompts: Prompts) -> Tensor:
    words = prompts.objects[prompts.leaf]
    return text.encode_pairs(prompts.context, prompts.states, words, prompts.parent)


def padded(text: TextTower, prompts: Prompts, length: int) -> Tensor:
    """Every prompt whole, padded to ``length`` tokens: the way of the published code."""
    head = torch.cat([text.token_rows(list(text.tokens.head)), prompts.context])
    end = len(head) + 2
    tail = text.token_rows([text.tokens.end, *[text.tokens.pad] * (length - end - 1)])
    found = []
    for words, parent in chunked(prompts.objects[prompts.leaf], prompts.parent, text.chunk):
        C = len(words)
        middle = torch.stack([prompts.states[parent], words], 1)
        x = torch.cat([head.expand(C, -1, -1), middle, tail.expand(C, -1, -1)], 1)
        found.append(
            text.finish(x + text.text.positional_embedding[:length], torch.full((C,), end, device=x.device))
        )
    return torch.cat(found)


def bench_text(
    text: TextTower, space: LabelSpace, *, rounds: int, limit: int, device: torch.device
) -> Iterator[Result]:
    """Forward, and forward with backward.

    Args:
        limit: prompts that the full context is measured with, scaled to all of them; 0: all. The padded
            prompts' backward pass, too, is measured with no more than fit into memory.
    """
    prompts = Prompts.of(text, space)
    P = len(space.pairs)
    text.chunk, _ = pick_chunk(0, text, P, device, torch.float32, len(prompts.context))
    own = "trie" if text.shares else "plain"
    if not text.causal:
        with torch.no_grad():
            taken = seconds({own: lambda: through_trie(text, prompts)}, device, rounds=rounds)
        yield Result(f"text forward, {P} pairs: {own}", taken[own], "s")
        return
    full = text.context_length
    few = min(limit or P, P)
    with torch.no_grad():
        fast = seconds(
            {own: lambda: through_trie(text, prompts), "short": lambda: padded(text, prompts, PEERS)},
            device,
            rounds=rounds,
        )
        slow = seconds({"full": lambda: padded(text, prompts.first(few), full)}, device, rounds=1)
    what = f"text forward, {P} pairs"
    yield from told(what, own, fast[own], {
        f"{PEERS} tokens": fast["short"], f"{full} tokens{scaled(few, P)}": slow["full"] * P / few,
    })  # fmt: skip
    for vector in prompts.learnable():
        vector.requires_grad_()
    keep = PEERS * BACKWARD * text.width * len(text.blocks) * 4  # bytes of a padded prompt
    few = max(1, min(P, free_memory(device) // 3 // keep))

    def both(way: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(way().square().sum(), prompts.learnable())

    short = prompts.first(few)
    with attention_kernels(device):
        fast = seconds(
            {
                own: both(lambda: through_trie(text, prompts)),
                "short": both(lambda: padded(text, short, PEERS)),
            },
            device,
            rounds=rounds,
        )
    what = f"text forward and backward, {P} pairs"
    yield from told(what, own, fast[own], {f"{PEERS} tokens{scaled(few, P)}": fast["short"] * P / few})


def scaled(few: int, every: int) -> str:
    return "" if few == every else f" (measured with {few}, scaled)"


def told(what: str, own: str, seconds_own: float, others: dict[str, float]) -> Iterator[Result]:
    for name, value in others.items():
        yield Result(f"{what}: {name}", value, "s")
    for name, value in others.items():
        yield Result(f"{what}: {own}", seconds_own, "s", name, value / seconds_own)


def positions(text: TextTower, space: LabelSpace) -> int:
    """Token positions that go through the tower for all pairs of a space, counted at its first block."""
    counted = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001 - torch's signature
        nonlocal counted
        counted += inputs[0].numel() // inputs[0].shape[-1]

    block: nn.Module = text.blocks[0]
    handle = block.get_submodule("ln_1").register_forward_pre_hook(count)
    with torch.no_grad():
        through_trie(text, Prompts.of(text, space))
    handle.remove()
    return counted
