"""The model: CLIP at its start, every part switchable, trainable on every kind of tower."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from refiner_cli.config import ModelConfig, TrainConfig
from refiner_cli.core.models.refiner import RefinedVectors, Refiner
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.towers.backbone import Backbone, load_backbone
from refiner_cli.core.towers.image import run
from tests.core.cases import SPACE


def images(backbone: Backbone, count: int = 2) -> torch.Tensor:
    size = backbone.spec.preprocess["size"]
    side = size if isinstance(size, int) else size[0]
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "pretrained"), [("tiny", "built-in"), ("ViT-B-32", "none")])
def test_at_its_start_it_is_clip_zero_shot(name: str, pretrained: str) -> None:
    backbone = load_backbone(name, pretrained)
    model = build_model("refiner", backbone, ModelConfig(), SPACE)
    pixels = images(backbone)
    with torch.no_grad():
        bank = model.eval().encode_pairs(SPACE)
        ours = model.score(model.train().encode_images(pixels), bank).composition  # of the class token
        text = backbone.text.encode_texts([f"a photo of {s} {o}" for s, o in SPACE.pairs])
        want = backbone.logit_scale * (
            F.normalize(backbone.clip.encode_image(pixels), dim=-1) @ F.normalize(text, dim=-1).T
        )
    assert torch.allclose(ours, want, rtol=0, atol=1e-5 * want.abs().max())


def test_what_the_class_token_says_is_refined_by_what_the_concepts_say(tiny: Backbone) -> None:
    model, pixels = Refiner.build(tiny, ModelConfig(), SPACE), images(tiny)
    with torch.no_grad():
        apart = model.train().encode_images(pixels)
        assert isinstance(apart, RefinedVectors)
        found = model.eval().encode_images(pixels)
    for role in ("composition", "state", "object"):
        v, c = getattr(apart, role), getattr(apart.concepts, role)
        assert torch.allclose(c.norm(dim=-1), torch.ones(2), atol=1e-5)
        assert not torch.allclose(v, c, atol=1e-2)
        assert torch.allclose(getattr(found, role), F.normalize(v + c, dim=-1), atol=1e-5)


def test_clip_baseline_equals_the_backbone(tiny: Backbone) -> None:
    model = build_model("clip", tiny, ModelConfig(), SPACE).eval()
    scores = model.score(model.encode_images(images(tiny)), model.encode_pairs(SPACE))
    assert scores.state is None
    assert scores.object is None
    assert not model.learned()


def steps(model: Refiner, pixels: torch.Tensor, count: int = 3) -> list[float]:
    """Losses of a few steps on one batch."""
    space = SPACE.training()
    truth = torch.tensor([0, 1])
    optimizer = torch.optim.SGD(model.learned().values(), lr=0.005)
    losses = []
    for _ in range(count):
        torch.manual_seed(0)
        model.train()
        scores = model.score(model.encode_images(pixels), model.encode_pairs(space))
        loss = model.loss(scores, truth, space, TrainConfig())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_siglip_tower_loads_equals_itself_and_trains() -> None:
    # A small tower of the same build: timm trunk with a pooling head, text that is not causal.
    backbone = load_backbone(str(Path(__file__).with_name("siglip.json")), "none")
    text = backbone.text
    assert not text.causal
    words = [*text.tokens.split("a photo of wet dog")]
    ids = torch.tensor([[*text.tokens.head, *words, text.tokens.end] + [text.tokens.pad] * 64])[
        :, : text.context_length
    ]
    model = Refiner.build(backbone, ModelConfig(adapter_blocks=1, query_blocks=1), SPACE)
    pixels = images(backbone)
    with torch.no_grad():
        bank = model.eval().encode_pairs(SPACE)
        want = F.normalize(backbone.clip.encode_text(ids), dim=-1)
        found = model.train().encode_images(pixels).composition  # of the class token
        assert torch.allclose(bank.pairs[SPACE.pair_index["wet", "dog"]], want[0], atol=1e-5)
        assert torch.allclose(found, F.normalize(backbone.clip.encode_image(pixels), dim=-1), atol=1e-5)
    looks = model.eval().look(pixels)
    assert torch.allclose(looks.sum(-1), torch.ones(looks.shape[:2]), atol=1e-5)
    assert looks.std(-1).min() > 1e-4
    losses = steps(model, pixels)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "off",
    [{"adapters": False}, {"queries": 0}, {"fusion": False}, {"align_state": False}, {"align_object": False},
     {"learn_context": False}, {"learn_words": False}],
)  # fmt: skip
def test_every_part_can_be_switched_off_and_the_rest_still_learns(
    tiny: Backbone, off: dict[str, object]
) -> None:
    torch.manual_seed(0)
    full = Refiner.build(tiny, ModelConfig(), SPACE)
    model = Refiner.build(tiny, ModelConfig.model_validate({"word_dropout": 0} | off), SPACE)
    if "align_state" not in off and "align_object" not in off:
        assert len(model.learned()) < len(full.learned())
    else:
        scores = model.score(model.encode_images(images(tiny)), model.encode_pairs(SPACE))
        assert (scores.state is None) == ("align_state" in off)
        assert (scores.object is None) == ("align_object" in off)
    losses = steps(model, images(tiny))
    assert losses[-1] < losses[0]


def test_every_learned_parameter_gets_a_gradient_once_the_adapters_are_open(tiny: Backbone) -> None:
    model = Refiner.build(tiny, ModelConfig(), SPACE)
    with torch.no_grad():
        for name, parameter in model.learned().items():
            if ".up." in name or ".narrow." in name:
                parameter.normal_(std=0.1)
    steps(model, images(tiny), 1)
    silent = [n for n, p in model.learned().items() if p.grad is None or not p.grad.abs().sum()]
    # A key's bias shifts all attention logits of a query alike, so only rounding reaches it; the key
    # and value biases share one tensor, which is not silent.
    assert silent == []


@pytest.mark.parametrize("name", ["tiny", str(Path(__file__).with_name("siglip.json"))])
def test_tokens_that_are_not_needed_are_left_out_without_a_difference(name: str) -> None:
    backbone = load_backbone(name, "built-in" if name == "tiny" else "none")
    model = Refiner.build(backbone, ModelConfig(), SPACE).eval()
    torch.manual_seed(0)
    for adapter in model.adapters:
        nn.init.normal_(adapter.attention.up.weight, std=0.1)
        nn.init.normal_(adapter.mlp.up.weight, std=0.1)
    tower, adapters = backbone.visual, list(model.adapters)
    x = model.lower(images(backbone))
    blocks = range(model.first, tower.depth)
    every, some = run(tower, x, blocks, adapters), run(tower, x, blocks, adapters, rows=3)
    assert some.shape[1] == 3
    assert torch.allclose(some, every[:, :3], rtol=0, atol=1e-5 * float(every.detach().abs().max()))
    plain = run(tower, x, blocks, (), rows=3)
    assert torch.allclose(plain, run(tower, x, blocks, ())[:, :3], atol=1e-4)


@pytest.mark.parametrize("name", ["tiny", str(Path(__file__).with_name("siglip.json"))])
@pytest.mark.parametrize("blocks", [1, 2])
def test_class_token_and_patches_do_not_see_the_queries(name: str, blocks: int) -> None:
    backbone = load_backbone(name, "built-in" if name == "tiny" else "none")
    model = Refiner.build(backbone, ModelConfig(adapter_blocks=1, query_blocks=blocks), SPACE).eval()
    torch.manual_seed(0)
    nn.init.normal_(model.beside[0].attention.up.weight, std=0.1)  # type: ignore[attr-defined]
    tower, concepts = backbone.visual, model.concepts
    assert concepts is not None
    x = model.enter(images(backbone), model.asked)
    joined = concepts.join(tower, x, tower.depth, model.beside)
    plain = run(tower, x, range(model.asked, tower.depth), model.beside)
    assert torch.allclose(
        joined[:, len(concepts) :], plain, rtol=0, atol=1e-5 * float(plain.detach().abs().max())
    )
    with torch.no_grad():
        concepts.queries.mul_(-1)
    moved = concepts.join(tower, x, tower.depth, model.beside)
    assert torch.allclose(moved[:, len(concepts) :], joined[:, len(concepts) :], atol=1e-5)
    assert not torch.allclose(moved[:, : len(concepts)], joined[:, : len(concepts)], atol=1e-2)


def test_the_towers_stay_frozen(tiny: Backbone) -> None:
    before = tiny.fingerprint()
    model = Refiner.build(tiny, ModelConfig(), SPACE)
    steps(model, images(tiny), 2)
    assert tiny.fingerprint() == before
    assert not model.train().clip.training
    assert all(p.grad is None for p in model.clip.parameters())


def test_attention_of_the_queries_sums_to_one(tiny: Backbone) -> None:
    model = Refiner.build(tiny, ModelConfig(queries=5, query_blocks=2), SPACE).eval()
    weights = model.look(images(tiny))
    assert weights.shape == (2, 5, 64)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 5), atol=1e-5)
    assert weights.std(-1).min() > 1e-4


def test_own_words_keep_clips_vectors_and_known_words_their_learned_ones(tiny: Backbone) -> None:
    model = Refiner.build(tiny, ModelConfig(word_dropout=0, word_share=0.25), SPACE)
    with torch.no_grad():
        model.prompts.states += 1
    for training, moved in ((True, 1.0), (False, 0.25)):
        rows = model.train(training).prompts.words("state", ["frozen", "wet"])
        assert torch.equal(rows[0], tiny.text.word("frozen"))
        assert torch.allclose(rows[1], tiny.text.word("wet") + moved)


def test_levels_are_taken_from_the_compositions_outside_training(tiny: Backbone) -> None:
    model = Refiner.build(tiny, ModelConfig(), SPACE)
    without = Refiner.build(tiny, ModelConfig(hubs=False), SPACE)
    without.load_state_dict(model.state_dict(), strict=False)
    assert model.train().encode_pairs(SPACE).levels is None
    with torch.no_grad():
        seen = model.eval().encode_images(images(tiny, 3))
        assert model.hubs is not None
        model.hubs.measure(seen.composition, torch.arange(3))
        bank, plain = model.encode_pairs(SPACE), without.eval().encode_pairs(SPACE)
        assert bank.levels is not None
        assert bank.levels.abs().min() > 0
        ours, theirs = model.score(seen, bank), without.score(seen, plain)
    assert torch.allclose(ours.composition, theirs.composition - bank.levels)
    assert torch.equal(ours.state, theirs.state)  # type: ignore[arg-type]


def test_combine_weighs_state_and_object_evidence(tiny: Backbone) -> None:
    from refiner_cli.core.models.base import Calibration

    model = Refiner.build(tiny, ModelConfig(), SPACE).eval()
    with torch.no_grad():
        scores = model.score(model.encode_images(images(tiny)), model.encode_pairs(SPACE))
    total = model.combine(scores, SPACE, Calibration(0.5, 2.0))
    for column, (state, obj) in enumerate(SPACE.pairs):
        want = (
            scores.composition[:, column]
            + 0.5 * scores.state.log_softmax(-1)[:, SPACE.states.index(state)]  # type: ignore[union-attr]
            + 2.0 * scores.object.log_softmax(-1)[:, SPACE.objects.index(obj)]  # type: ignore[union-attr]
        )
        assert torch.allclose(total[:, column], want)
    wide = SPACE.open_world()
    with torch.no_grad():
        scores = model.score(model.encode_images(images(tiny)), model.encode_pairs(wide))
    assert torch.equal(model.combine(scores, wide, Calibration(0.5, 2.0)), scores.composition)
