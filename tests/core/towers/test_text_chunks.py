"""The chunk follows the free memory, and says why."""

from __future__ import annotations

import pytest
import torch

from refiner_cli.core.runtime.device import GIB, attention_kernels
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.core.towers.text import TextTower
from refiner_cli.core.towers.text_chunks import MIN_PROMPTS, pick_chunk_size, prompt_bytes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def text() -> TextTower:
    return load_backbone("tiny", "none").text


def pick(text: TextTower, free: int, *, requested: int = 0, prompts: int = 5592) -> tuple[int, str]:
    return pick_chunk_size(requested, text, prompts, torch.float32, 3, free)


def test_all_prompts_at_once_where_they_fit(text: TextTower) -> None:
    size, why = pick(text, 64 * GIB, prompts=100)
    assert size == 100
    assert "all at once" in why
    assert "64.0 GiB are free" in why


def test_less_memory_makes_smaller_chunks_that_fit(text: TextTower) -> None:
    each = prompt_bytes(text, 7, torch.float32)
    sizes = [pick(text, free * each)[0] for free in (8000, 4000, 1000)]
    assert sizes == [2000, 1000, 250]
    assert pick(text, 0)[0] == MIN_PROMPTS


def test_a_given_chunk_is_taken(text: TextTower) -> None:
    assert pick(text, 0, requested=77) == (77, "requested")


@pytest.mark.parametrize("shares", [True, False])
def test_the_estimate_bounds_what_autograd_keeps(
    monkeypatch: pytest.MonkeyPatch, text: TextTower, shares: bool
) -> None:
    monkeypatch.setattr(text, "uses_prefix_cache", shares)
    rows = 256
    words = torch.randn(rows, text.width, requires_grad=True)
    context = text.embed_context("a photo of")
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that no address comes twice
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value), attention_kernels(CPU):
        text.encode_pairs(context, words[:1], words, torch.zeros(rows, dtype=torch.int64))
    frozen = {p.untyped_storage().data_ptr() for p in text.text.parameters()}
    total = sum(storage.nbytes() for place, storage in kept.items() if place not in frozen)
    tokens = len(text.tokens.prefix_ids) + len(context) + 3
    assert 0.5 < total / (rows * prompt_bytes(text, tokens, torch.float32)) < 1
