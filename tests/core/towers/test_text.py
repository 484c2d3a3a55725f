"""The prefix cache and the plain path give what the backbone's own text encoder gives."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor, nn

from refiner_cli.core.models.base import MemoryOptions
from refiner_cli.core.models.refiner import Refiner, RefinerConfig
from refiner_cli.core.towers import prefix_cache
from refiner_cli.core.towers.backbone import Backbone, load_backbone
from refiner_cli.core.towers.text import DEFAULT_CHUNK_SIZE, label_to_text
from refiner_cli.data.labels import LabelSpace

STATES = ["wet", "sliced", "red"]
OBJECTS = ["apple", "dog", "key", "car"]
PARENT = torch.tensor([0, 0, 1, 2, 2, 1, 0])
LEAF = torch.tensor([0, 3, 1, 2, 0, 0, 2])


def text_alone(name: str, folder: Path) -> Backbone:
    """The text tower of a model, beside an image tower that costs nothing."""
    config = open_clip.get_model_config(name)
    config["vision_cfg"] = {"image_size": 16, "patch_size": 16, "width": 64, "layers": 1}
    file = folder / "config.json"
    file.write_text(json.dumps(config))
    return load_backbone(str(file), "none")


@pytest.fixture(scope="module", params=["tiny", "ViT-B-32", "ViT-L-14"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    if request.param == "tiny":
        return load_backbone("tiny", "none")
    return text_alone(request.param, tmp_path_factory.mktemp("backbone"))


def vectors(backbone: Backbone) -> tuple[Tensor, Tensor, Tensor]:
    """Context, states and objects as leaves with gradients."""
    text = backbone.text
    context = text.embed_context("a photo of")
    states, objects = (torch.stack([text.embed_label(w) for w in words]) for words in (STATES, OBJECTS))
    return tuple(nn.Parameter(t + 0.01 * torch.randn_like(t)) for t in (context, states, objects))  # type: ignore[return-value]


def gap(a: Tensor, b: Tensor) -> float:
    return ((a - b).detach().abs().max() / b.detach().abs().max()).item()


def encode(backbone: Backbone, parts: tuple[Tensor, Tensor, Tensor], *, cached: bool, chunk: int) -> Tensor:
    context, states, objects = parts
    backbone.text.uses_prefix_cache = cached
    pairs = backbone.text.encode_pairs(context, states, objects[LEAF], PARENT, chunk_size=chunk)
    singles = backbone.text.encode(context, states, chunk_size=chunk)
    backbone.text.uses_prefix_cache = True
    return torch.cat([pairs, singles])


def test_pairs_equal_the_backbones_own_text_encoder(backbone: Backbone) -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=backbone.text.context_length)
    prompts = [f"a photo of {STATES[p]} {OBJECTS[c]}" for p, c in zip(PARENT, LEAF, strict=True)]
    want = backbone.clip.encode_text(tokenizer(prompts))
    text = backbone.text
    states, objects = (torch.stack([text.embed_label(w) for w in words]) for words in (STATES, OBJECTS))
    got = text.encode_pairs(text.embed_context("a photo of"), states, objects[LEAF], PARENT)
    assert gap(got, want) < 1e-5
    assert gap(text.encode_texts(prompts), want) < 1e-5


@pytest.mark.parametrize("chunk", [100, 2])
def test_the_prefix_cache_equals_the_plain_path_in_values_and_gradients(
    backbone: Backbone, chunk: int
) -> None:
    torch.manual_seed(0)
    parts = vectors(backbone)
    weight = torch.randn(len(PARENT) + len(STATES), backbone.embed_dim)
    found = []
    for cached, size in ((False, 100), (True, chunk), (False, chunk)):
        out = encode(backbone, parts, cached=cached, chunk=size)
        found.append((out, torch.autograd.grad((out * weight).sum(), parts)))
    (plain, want), *others = found
    for out, grads in others:
        assert gap(out, plain) < 1e-5
        assert max(gap(g, w) for g, w in zip(grads, want, strict=True)) < 1e-5


def test_a_tower_that_is_not_causal_reads_the_padding_and_chunks_exactly() -> None:
    siglip = load_backbone(str(Path(__file__).parents[1] / "models/siglip.json"), "none")
    text = siglip.text
    assert text.reads_padding
    assert not text.uses_prefix_cache
    prompts = [f"a photo of {STATES[p]} {OBJECTS[c]}" for p, c in zip(PARENT, LEAF, strict=True)]
    ids = [[*text.tokens.prefix_ids, *text.tokens.encode(prompt), text.tokens.eos_id] for prompt in prompts]
    full = torch.tensor([row + [text.tokens.pad_id] * (text.context_length - len(row)) for row in ids])
    want = siglip.clip.encode_text(full)
    torch.manual_seed(0)
    states, objects = (torch.stack([text.embed_label(w) for w in words]) for words in (STATES, OBJECTS))
    assert (
        gap(text.encode_pairs(text.embed_context("a photo of"), states, objects[LEAF], PARENT), want) < 1e-5
    )
    parts = vectors(siglip)
    found = []
    for chunk in (DEFAULT_CHUNK_SIZE, 3):
        out = text.encode_pairs(parts[0], parts[1], parts[2][LEAF], PARENT, chunk_size=chunk)
        found.append(torch.autograd.grad(out.square().sum(), parts))
    assert max(gap(g, w) for g, w in zip(found[1], found[0], strict=True)) < 1e-5


def test_chunks_and_prefix_cache_change_no_gradient_of_a_model_with_dropout_on() -> None:
    tiny = load_backbone("tiny", "none")
    pairs = [(STATES[p], OBJECTS[c]) for p, c in zip(PARENT, LEAF, strict=True)]
    space = LabelSpace.from_pairs(pairs, pairs)
    model = Refiner.build(tiny, RefinerConfig(primitive_dropout=0.5), space).train()
    prompts = list(model.prompts.parameters())
    torch.manual_seed(0)
    weight = torch.randn(len(space.pairs), tiny.embed_dim)
    found = []
    for cached, chunk in ((False, DEFAULT_CHUNK_SIZE), (True, DEFAULT_CHUNK_SIZE), (True, 3), (True, 1)):
        tiny.text.uses_prefix_cache, model.memory = cached, MemoryOptions(chunk)
        torch.manual_seed(1)  # one step, one mask
        bank = model.encode_pairs(space)
        assert bank.states is not None
        assert bank.objects is not None
        loss = (bank.pairs * weight).sum() + bank.states[:, 0].sum() + bank.objects[:, 1].sum()
        found.append(torch.autograd.grad(loss, prompts))
    plain, *others = found
    assert all(gap(g, w) < 1e-5 for grads in others for g, w in zip(grads, plain, strict=True))
    torch.manual_seed(2)  # another mask, other gradients: the dropout is really on
    loss = (model.encode_pairs(space).pairs * weight).sum()
    assert gap(torch.autograd.grad(loss, prompts[0])[0], plain[0]) > 1e-3


def test_the_prefix_cache_encodes_two_tokens_a_pair_and_the_shared_ones_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = load_backbone("tiny", "none")
    counted = []
    true_heads = prefix_cache.qkv_heads

    def counting(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        counted.append(x.shape[0] * x.shape[1])
        return true_heads(block, x)

    monkeypatch.setattr(prefix_cache, "qkv_heads", counting)
    S, O = 9, 23  # noqa: E741
    context = tiny.text.embed_context("a photo of")
    with torch.no_grad():
        words = torch.randn(S * O, tiny.text.width)
        tiny.text.encode_pairs(context, words[:S], words, torch.arange(S).repeat_interleave(O), chunk_size=50)
    prefix = len(tiny.text.tokens.prefix_ids) + len(context)
    assert sum(counted) == len(tiny.text.blocks) * (prefix + S + 2 * S * O)


def test_a_name_of_several_tokens_is_their_mean(backbone: Backbone) -> None:
    text = backbone.text
    want = text.embed_tokens(text.tokens.encode("faux leather")).mean(0)
    assert torch.equal(text.embed_label("Faux.Leather"), want)


def test_labels_are_spoken() -> None:
    assert label_to_text("Shoes.Boat.Shoes") == "shoes boat shoes"
    assert label_to_text("ancient_city") == "ancient city"
