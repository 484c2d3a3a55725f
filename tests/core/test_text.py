"""The prompt trie and the plain path give what the backbone's own text encoder gives."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch import Tensor, nn

from refiner_cli.core.clip import Backbone, load_backbone
from refiner_cli.core.text import spoken

STATES = ["wet", "sliced", "red"]
OBJECTS = ["apple", "dog", "key", "car"]
PARENT = torch.tensor([0, 0, 1, 2, 2, 1, 0])
LEAF = torch.tensor([0, 3, 1, 2, 0, 0, 2])


@pytest.fixture(scope="module", params=["tiny", "ViT-B-32"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return load_backbone(request.param, "none")


def vectors(backbone: Backbone) -> tuple[Tensor, Tensor, Tensor]:
    """Context, states and objects as leaves with gradients."""
    text = backbone.text
    context = text.context("a photo of")
    states, objects = (torch.stack([text.word(w) for w in words]) for words in (STATES, OBJECTS))
    return tuple(nn.Parameter(t + 0.01 * torch.randn_like(t)) for t in (context, states, objects))  # type: ignore[return-value]


def gap(a: Tensor, b: Tensor) -> float:
    return ((a - b).detach().abs().max() / b.detach().abs().max()).item()


def encode(backbone: Backbone, parts: tuple[Tensor, Tensor, Tensor], *, trie: bool, chunk: int) -> Tensor:
    context, states, objects = parts
    backbone.text.shares = trie
    pairs = backbone.text.encode_pairs(context, states, objects[LEAF], PARENT, chunk=chunk)
    singles = backbone.text.encode(context, states, chunk=chunk)
    backbone.text.shares = True
    return torch.cat([pairs, singles])


def test_pairs_equal_the_backbones_own_text_encoder(backbone: Backbone) -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=backbone.text.context_length)
    prompts = [f"a photo of {STATES[p]} {OBJECTS[c]}" for p, c in zip(PARENT, LEAF, strict=True)]
    want = backbone.clip.encode_text(tokenizer(prompts))
    text = backbone.text
    states, objects = (torch.stack([text.word(w) for w in words]) for words in (STATES, OBJECTS))
    got = text.encode_pairs(text.context("a photo of"), states, objects[LEAF], PARENT)
    assert gap(got, want) < 1e-5
    assert gap(text.encode_texts(prompts), want) < 1e-5


@pytest.mark.parametrize("chunk", [100, 2])
def test_trie_equals_the_plain_path_in_values_and_gradients(backbone: Backbone, chunk: int) -> None:
    torch.manual_seed(0)
    parts = vectors(backbone)
    weight = torch.randn(len(PARENT) + len(STATES), backbone.embed_dim)
    found = []
    for trie, size in ((False, 100), (True, chunk), (False, chunk)):
        out = encode(backbone, parts, trie=trie, chunk=size)
        found.append((out, torch.autograd.grad((out * weight).sum(), parts)))
    (plain, want), *others = found
    for out, grads in others:
        assert gap(out, plain) < 1e-5
        assert max(gap(g, w) for g, w in zip(grads, want, strict=True)) < 1e-5


def test_a_name_of_several_tokens_is_their_mean(backbone: Backbone) -> None:
    text = backbone.text
    want = text.token_rows(text.tokens.split("faux leather")).mean(0)
    assert torch.equal(text.word("Faux.Leather"), want)


def test_labels_are_spoken() -> None:
    assert spoken("Shoes.Boat.Shoes") == "shoes boat shoes"
    assert spoken("ancient_city") == "ancient city"
