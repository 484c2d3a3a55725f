"""The model: CLIP at its start, every part switchable, trainable on every kind of tower."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from refiner_cli.config import TrainConfig, method_section
from refiner_cli.core.models.base import ImageVectors, Model
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.core.models.hubness import HubnessCorrection
from refiner_cli.core.models.prompts import ROLES
from refiner_cli.core.models.refiner import Refiner, RefinerConfig
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.models.visual_refinement import GATE_LIMIT, GATE_UNIT
from refiner_cli.core.towers.backbone import Backbone, load_backbone
from refiner_cli.core.towers.image import run_blocks
from tests.core.cases import SPACE, steps

SIGLIP = str(Path(__file__).with_name("siglip.json"))  # a small tower of the same build
BACKBONES = [("tiny", "built-in"), ("ViT-B-32", "none"), (SIGLIP, "none")]


def images(backbone: Backbone, count: int = 2) -> torch.Tensor:
    size = backbone.spec.preprocess["size"]
    side = size if isinstance(size, int) else size[0]
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "pretrained"), BACKBONES)
def test_untrained_with_every_part_on_it_is_clip_zero_shot(name: str, pretrained: str) -> None:
    backbone = load_backbone(name, pretrained)
    model = build_model("refiner", backbone, method_section("refiner")(), SPACE)
    assert len(model.adapters) == backbone.visual.depth
    pixels = images(backbone)
    with torch.no_grad():
        ours = model.eval()(pixels, model.encode_pairs(SPACE)).composition
        text = backbone.text.encode_texts([f"a photo of {s} {o}" for s, o in SPACE.pairs])
        want = backbone.logit_bias + backbone.logit_scale * (
            F.normalize(backbone.clip.encode_image(pixels), dim=-1) @ F.normalize(text, dim=-1).T
        )
    assert torch.allclose(ours, want, rtol=0, atol=1e-5 * want.abs().max())


def test_each_role_is_refined_by_its_own_region_as_far_as_its_gate_is_open(tiny: Backbone) -> None:
    model, pixels = Refiner.build(tiny, RefinerConfig(image_to_text=False), SPACE), images(tiny)
    refinement = model.eval().visual_refinement
    assert refinement is not None
    gates = (0.0, 0.1, 0.4)
    with torch.no_grad():
        for group, gate in zip(refinement.groups(), gates, strict=True):
            group.gate_logit.fill_(math.atanh(gate / GATE_LIMIT) / GATE_UNIT)
        tokens = model.encode_tokens(pixels)
        class_token, values = model.read_class_token(tokens), refinement.values(tiny.visual, tokens)
        looks = model.query_attention(pixels)  # B x K x L
        found = model.encode_images(pixels)
    for number, (role, gate) in enumerate(zip(ROLES, gates, strict=True)):
        group = looks[:, 2 * number : 2 * number + 2].mean(1)  # B x L
        region = F.normalize(torch.einsum("bl,bld->bd", group, values), dim=-1)
        want = F.normalize(class_token + gate * region, dim=-1)
        assert torch.allclose(getattr(found, role), want, atol=1e-5)
        assert torch.allclose(getattr(found.branches[0], role), region, atol=1e-5)


def test_clip_baseline_equals_the_backbone(tiny: Backbone) -> None:
    model = build_model("clip", tiny, method_section("clip")(), SPACE).eval()
    scores = model.score(model.encode_images(images(tiny)), model.encode_pairs(SPACE))
    assert scores.state is None
    assert scores.object is None
    assert not model.trainable_parameters()


def test_a_siglip_tower_loads_equals_itself_and_trains() -> None:
    # A small tower of the same build: timm trunk with a pooling head, text that is not causal.
    backbone = load_backbone(SIGLIP, "none")
    text = backbone.text
    assert text.reads_padding
    words = [*text.tokens.encode("a photo of wet dog")]
    ids = torch.tensor([[*text.tokens.prefix_ids, *words, text.tokens.eos_id] + [text.tokens.pad_id] * 64])[
        :, : text.context_length
    ]
    model = Refiner.build(backbone, RefinerConfig(adapter_blocks=1), SPACE)
    pixels = images(backbone)
    with torch.no_grad():
        bank = model.eval().encode_pairs(SPACE)
        want = F.normalize(backbone.clip.encode_text(ids), dim=-1)
        assert torch.allclose(bank.pairs[SPACE.pair_index["wet", "dog"]], want[0], atol=1e-5)
    looks = model.eval().query_attention(pixels)
    assert torch.allclose(looks.sum(-1), torch.ones(looks.shape[:2]), atol=1e-5)
    assert looks.std(-1).min() > 1e-4
    losses = steps(model, pixels)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "off",
    [{"adapters": False}, {"queries_per_role": 0}, {"image_to_text": False}, {"align_state": False},
     {"align_object": False}, {"learn_context": False}, {"learn_primitives": False}],
)  # fmt: skip
def test_every_part_can_be_switched_off_and_the_rest_still_learns(
    tiny: Backbone, off: dict[str, object]
) -> None:
    torch.manual_seed(0)
    full = Refiner.build(tiny, RefinerConfig(), SPACE)
    model = Refiner.build(tiny, RefinerConfig.model_validate({"primitive_dropout": 0} | off), SPACE)
    if "align_state" not in off and "align_object" not in off:
        assert len(model.trainable_parameters()) < len(full.trainable_parameters())
    else:
        scores = model.score(model.encode_images(images(tiny)), model.encode_pairs(SPACE))
        assert (scores.state is None) == ("align_state" in off)
        assert (scores.object is None) == ("align_object" in off)
    losses = steps(model, images(tiny))
    assert losses[-1] < losses[0]


def test_every_learned_parameter_gets_a_gradient_once_the_zeros_are_open(tiny: Backbone) -> None:
    model = Refiner.build(tiny, RefinerConfig(), SPACE)
    with torch.no_grad():
        for name, parameter in model.trainable_parameters().items():
            if ".up." in name or ".narrow." in name or name.endswith(".gate_logit"):
                parameter.normal_(std=0.1)
    steps(model, images(tiny), 1)
    silent = [n for n, p in model.trainable_parameters().items() if p.grad is None or not p.grad.abs().sum()]
    assert silent == []


def test_gates_and_maps_open_at_the_first_step(tiny: Backbone) -> None:
    model = Refiner.build(tiny, RefinerConfig(), SPACE)
    steps(model, images(tiny), 1)
    maps = model.image_to_text
    assert model.visual_refinement is not None
    assert maps is not None
    assert all(group.gate.abs() > 0 for group in model.visual_refinement.groups())
    assert all(
        p.abs().max() > 0 for p in (maps.composition.gap, maps.state.narrow.weight, maps.object.narrow.bias)
    )


@pytest.mark.parametrize("name", ["tiny", SIGLIP])
def test_tokens_that_are_not_needed_are_left_out_without_a_difference(name: str) -> None:
    backbone = load_backbone(name, "built-in" if name == "tiny" else "none")
    model = Refiner.build(backbone, RefinerConfig(), SPACE).eval()
    torch.manual_seed(0)
    for adapter in model.adapters:
        nn.init.normal_(adapter.attention.up.weight, std=0.1)
        nn.init.normal_(adapter.mlp.up.weight, std=0.1)
    tower, adapters = backbone.visual, list(model.adapters)
    x = model.encode_frozen_blocks(images(backbone))
    blocks = range(model.first_trainable_block, tower.depth)
    every, some = run_blocks(tower, x, blocks, adapters), run_blocks(tower, x, blocks, adapters, rows=3)
    assert some.shape[1] == 3
    assert torch.allclose(some, every[:, :3], rtol=0, atol=1e-5 * float(every.detach().abs().max()))
    plain = run_blocks(tower, x, blocks, (), rows=3)
    assert torch.allclose(plain, run_blocks(tower, x, blocks, ())[:, :3], atol=1e-4)


@pytest.mark.parametrize("name", ["tiny", SIGLIP])
@pytest.mark.parametrize("blocks", [1, 2])
def test_class_token_and_patches_do_not_see_the_queries(name: str, blocks: int) -> None:
    backbone = load_backbone(name, "built-in" if name == "tiny" else "none")
    config = RefinerConfig(adapter_blocks=blocks, image_to_text=False)
    model, pixels = Refiner.build(backbone, config, SPACE).eval(), images(backbone)
    refinement = model.visual_refinement
    assert refinement is not None
    torch.manual_seed(0)
    with torch.no_grad():
        for adapter in model.adapters:
            nn.init.normal_(adapter.attention.up.weight, std=0.1)
        tokens = model.encode_tokens(pixels)
        class_token, (regions,) = model.read_class_token(tokens), model.encode_images(pixels).branches
        for group in refinement.groups():
            group.queries.mul_(-1).add_(1)
            group.gate_logit.fill_(math.atanh(0.5) / GATE_UNIT)
        moved = model.encode_tokens(pixels)
        assert torch.equal(moved, tokens)
        assert torch.equal(model.read_class_token(moved), class_token)
        found = model.encode_images(pixels)
    for role in ROLES:
        region = getattr(found.branches[0], role)
        assert not torch.allclose(region, getattr(regions, role), atol=1e-4)
        assert not torch.allclose(getattr(found, role), class_token, atol=1e-4)


@pytest.mark.parametrize("mapped", [True, False])
def test_training_aligns_regions_and_class_token_on_their_own(tiny: Backbone, mapped: bool) -> None:
    model, pixels = Refiner.build(tiny, RefinerConfig(image_to_text=mapped), SPACE), images(tiny)
    assert model.visual_refinement is not None
    with torch.no_grad():
        for group in model.visual_refinement.groups():
            group.gate_logit.fill_(1.0)
        model.train()
        trained, bank = model.encode_images(pixels), model.encode_pairs(SPACE)
        class_token = model.read_class_token(model.encode_tokens(pixels))
        want = model.map_to_text(ImageVectors(class_token, class_token, class_token))
        _, whole = trained.branches
        scores = model.score(trained, bank)
        truth, train = torch.tensor([0, 1]), TrainConfig(concept_weight=0.25)
        alone = [Model.loss(model, one, truth, SPACE, train) for one in (scores, *scores.branches)]
        assert float(model.loss(scores, truth, SPACE, train)) == pytest.approx(
            float(alone[0] + 0.25 * (alone[1] + alone[2]))
        )
        assert len(model.eval().encode_images(pixels).branches) == 1
    for role in ROLES:
        assert torch.equal(getattr(whole, role), getattr(want, role))
        assert not torch.allclose(getattr(whole, role), getattr(trained, role), atol=1e-3)


def test_the_towers_stay_frozen(tiny: Backbone) -> None:
    before = tiny.fingerprint()
    model = Refiner.build(tiny, RefinerConfig(), SPACE)
    steps(model, images(tiny), 2)
    assert tiny.fingerprint() == before
    assert not model.train().clip.training
    assert all(p.grad is None for p in model.clip.parameters())


def test_attention_of_the_queries_sums_to_one(tiny: Backbone) -> None:
    model = Refiner.build(tiny, RefinerConfig(queries_per_role=3), SPACE).eval()
    weights = model.query_attention(images(tiny))
    assert weights.shape == (2, 9, 64)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 9), atol=1e-5)
    assert weights.std(-1).min() > 1e-4


def test_own_words_keep_clips_vectors_and_known_words_their_learned_ones(tiny: Backbone) -> None:
    model = Refiner.build(tiny, RefinerConfig(primitive_dropout=0), SPACE)
    with torch.no_grad():
        model.prompts.states += 1
    for training, moved in ((True, 1.0), (False, 0.25)):
        rows = model.train(training).prompts.embed("state", ["frozen", "wet"], 0.25)
        assert torch.equal(rows[0], tiny.text.embed_label("frozen"))
        assert torch.allclose(rows[1], tiny.text.embed_label("wet") + moved)


def test_levels_are_taken_from_the_compositions_outside_training(tiny: Backbone) -> None:
    model = Refiner.build(tiny, RefinerConfig(), SPACE).eval()
    with torch.no_grad():
        seen = model.encode_images(images(tiny, 3))
        model.hubness = HubnessCorrection(3, tiny.embed_dim)
        model.hubness.fit(seen.composition, torch.arange(3))
        assert model.text_bank(SPACE).offsets is None  # the calibration has no strength
        model.calibration = Calibration(hubness_strength=0.5)
        assert model.encode_pairs(SPACE).offsets is None  # what training sees
        bank = model.text_bank(SPACE)
        assert bank.offsets is not None
        assert bank.offsets.abs().min() > 0
        ours, theirs = model.corrected_scores(seen, bank), model.score(seen, model.encode_pairs(SPACE))
    assert torch.allclose(ours.composition, theirs.composition - bank.offsets)
    assert torch.equal(ours.state, theirs.state)  # type: ignore[arg-type]


def test_combine_weighs_state_and_object_evidence(tiny: Backbone) -> None:
    model = Refiner.build(tiny, RefinerConfig(), SPACE).eval()
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
