"""Image towers opened up compute what the libraries' own encoders compute.

The private functions that this needs were checked with open_clip 3.3.0 and timm 1.0.31; with another
version these tests say whether they still do the same.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import timm
import torch
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.config import TrainConfig, method_section
from refiner_cli.core.model_io.checkpoint import ModelInfo, read_model
from refiner_cli.core.model_io.export import export_model
from refiner_cli.core.models.refiner import Refiner, RefinerConfig
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.core.towers.image import AttentionSpec, ImageTower, run_blocks
from refiner_cli.core.towers.library_internals import CHECKED, private_method
from refiner_cli.core.towers.open_tower import open_image_tower
from refiner_cli.errors import ConfigError, EnvironmentLacksError
from tests.core.cases import SPACE
from tests.core.towers.small_models import CONFIG

WIDTH, DEPTH, SIZE, PATCH = 48, 3, 32, 8
INFO = ModelInfo("refiner", "none", "", "", 1, {})


def in_open_clip(trunk: nn.Module) -> Any:
    """A timm model as open_clip's TimmModel wraps it."""
    visual = nn.Module()
    visual.trunk, visual.head = trunk, nn.Linear(WIDTH, 24)
    visual.forward = lambda x: visual.head(trunk(x))
    return visual


def vit(**options: Any) -> nn.Module:
    return timm.models.VisionTransformer(
        img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=4, num_classes=0, **options
    )


def eva(**options: Any) -> nn.Module:
    model: nn.Module = timm.models.eva.Eva(
        img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=4, num_classes=0, **options
    )
    return model


TOWERS: dict[str, Any] = {
    "siglip": lambda: vit(class_token=False, global_pool="map"),
    "layer scale": lambda: vit(init_values=0.1, pre_norm=True, global_pool="token"),
    "vitamin": lambda: vit(class_token=False, global_pool="avg", fc_norm=True),
    "average": lambda: vit(class_token=False, global_pool="avg", reg_tokens=2),
    "eva01": lambda: eva(init_values=0.1, global_pool="avg"),
    "eva02": lambda: eva(
        use_rot_pos_emb=True, qkv_fused=False, swiglu_mlp=True, scale_mlp=True, global_pool="token",
        ref_feat_shape=(4, 4),
    ),
    "eva02 post": lambda: eva(use_post_norm=True, global_pool="token"),
    "pe core": lambda: eva(
        use_rot_pos_emb=True, attn_type="rope", global_pool="map", attn_pool_num_heads=4,
        attn_pool_mlp_ratio=4.0, use_pre_transformer_norm=True, no_embed_class=False, ref_feat_shape=(4, 4),
    ),
}  # fmt: skip


@pytest.fixture(params=TOWERS)
def visual(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    trunk = TOWERS[request.param]()
    for parameter in trunk.parameters():  # zero and one everywhere would hide what is left out
        nn.init.normal_(parameter, 0.1 if parameter.ndim == 1 else 0, 0.2)
    return in_open_clip(trunk).eval().requires_grad_(False)


class Identity:
    """Adapters that add nothing."""

    attention = mlp = staticmethod(torch.zeros_like)


def encoded(tower: ImageTower, images: Tensor, **options: Any) -> Tensor:
    return tower.pool_and_project(run_blocks(tower, tower.embed(images), range(tower.depth), [], **options))[
        0
    ]


def test_the_steps_equal_the_librarys_own_encoder(visual: Any) -> None:
    tower = open_image_tower(visual)
    assert (tower.width, tower.depth, tower.patch_size) == (WIDTH, DEPTH, PATCH)
    images = torch.randn(2, 3, SIZE, SIZE)
    want = visual.forward(images)
    x = tower.embed(images)
    assert torch.allclose(encoded(tower, images), want, atol=1e-5)
    no_mask = torch.zeros(x.shape[1], x.shape[1])
    assert torch.allclose(encoded(tower, images, mask=no_mask), want, atol=1e-5)
    adapted = run_blocks(tower, x, range(DEPTH), [Identity()] * DEPTH)
    assert torch.allclose(tower.pool_and_project(adapted)[0], want, atol=1e-5)
    if tower.num_pooled_tokens is not None:
        assert torch.allclose(encoded(tower, images, rows=tower.num_pooled_tokens), want, atol=1e-5)


def test_tokens_in_front_that_are_masked_change_nothing(visual: Any) -> None:
    tower = open_image_tower(visual)
    x = tower.embed(torch.randn(2, 3, SIZE, SIZE))
    extra, N = 3, x.shape[1]
    mask = torch.zeros(extra + N, extra + N)
    mask[extra:, :extra] = -torch.inf
    longer = torch.cat([torch.randn(2, extra, WIDTH), x], 1)
    got = run_blocks(tower, longer, range(DEPTH), [], mask=mask)[:, extra:]
    assert torch.allclose(got, run_blocks(tower, x, range(DEPTH), []), atol=1e-5)


def test_a_token_goes_the_way_of_the_image_vector_into_the_joint_space(visual: Any) -> None:
    """An image whose tokens are all one token has that token's vector, however it is pooled."""
    tower = open_image_tower(visual)
    N = tower.embed(torch.randn(1, 3, SIZE, SIZE)).shape[1]
    pooled, tokens = tower.pool_and_project(torch.randn(3, 1, WIDTH).expand(3, N, WIDTH))
    values = tower.project_tokens(tokens[:, tower.num_prefix_tokens :])
    assert torch.allclose(values, pooled[:, None].expand_as(values), atol=1e-4)


def test_attention_weights_are_those_of_the_block(visual: Any) -> None:
    """Changing a token changes another one's output only where the weights say that it attends to it."""
    tower = open_image_tower(visual)
    x = tower.embed(torch.randn(1, 3, SIZE, SIZE))
    N = x.shape[1]
    weights = tower.attention_weights(1, x)
    assert weights.shape == (1, N, N)
    assert torch.allclose(weights.sum(-1), torch.ones(1, N), atol=1e-5)
    # With values that only tell the tokens apart, the attended vectors are the weights themselves.
    heads, spec = [], AttentionSpec(mask=torch.zeros(N, N))
    true = torch.nn.functional.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        heads.append(true(q, k, torch.eye(N).expand(*q.shape[:2], N, N), **options))
        return true(q, k, v, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        tower.block(1, x, None, spec)
    assert torch.allclose(heads[0].mean(1), weights, atol=1e-5)


@pytest.mark.parametrize(("name", "pixels"), [("ViTamin-S", 16), ("MobileCLIP-B", 16)])
def test_a_patch_cut_from_a_feature_map_is_measured_in_pixels(name: str, pixels: int) -> None:
    assert load_backbone(name, "none").visual.patch_size == pixels


@pytest.mark.parametrize("size", [[32, 48], [48, 32]])
def test_a_rectangular_image_size_trains_and_scores(tmp_path: Path, size: list[int]) -> None:
    config = {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "image_size": size}}
    (tmp_path / "model.json").write_text(json.dumps(config))
    backbone = load_backbone(str(tmp_path / "model.json"), "none")
    assert backbone.spec.preprocess["size"] == size
    images = torch.randn(2, 3, *size)
    assert torch.allclose(encoded(backbone.visual, images), backbone.clip.encode_image(images), atol=1e-5)
    model = Refiner.build(backbone, RefinerConfig(), SPACE).train()
    scores = model.score(model.encode_images(images), model.encode_pairs(SPACE))
    scores.composition.sum().backward()


KINDS: dict[str, dict[str, Any]] = {
    "open_clip": {**CONFIG["vision_cfg"], "pool_type": "avg", "final_ln_after_pool": True},
    "EVA02": {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": "linear"},
    "PE-Core": {"timm_model_name": "vit_pe_core_tiny_patch16_384", "image_size": 384, "timm_proj": "linear",
                "timm_pool": "map"},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_scores_as_open_clip_trains_and_reloads(tmp_path: Path, kind: str) -> None:
    config = {**CONFIG, "custom_text": True, "vision_cfg": KINDS[kind]}
    (tmp_path / "model.json").write_text(json.dumps(config))
    backbone = load_backbone(str(tmp_path / "model.json"), "none")
    size = backbone.spec.preprocess["size"]
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))

    zero_shot = build_model("clip", backbone, method_section("clip")(), SPACE).eval()
    with torch.no_grad():
        scores = zero_shot.score(zero_shot.encode_images(images), zero_shot.encode_pairs(SPACE))
        prompts = [f"a photo of {state} {obj}" for state, obj in SPACE.pairs]
        texts = backbone.clip.encode_text(open_clip.tokenize(prompts, CONFIG["text_cfg"]["context_length"]))
        cosines = F.normalize(backbone.clip.encode_image(images), dim=-1) @ F.normalize(texts, dim=-1).T
    assert torch.allclose(scores.composition / backbone.logit_scale, cosines, atol=1e-5)

    model = Refiner.build(backbone, RefinerConfig(queries_per_role=1), SPACE).train()
    scores = model.score(model.encode_images(images), model.encode_pairs(SPACE))
    model.loss(scores, torch.tensor([0, 1]), SPACE, TrainConfig()).backward()
    learned = model.trainable_parameters()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learned.values())
    torch.optim.SGD(learned.values(), lr=0.01).step()
    attention = model.eval().query_attention(images)
    assert attention.shape[2] == (size // backbone.visual.patch_size) ** 2
    export_model(tmp_path / "export", model, INFO, dtype="fp32", with_backbone=True)
    again, _ = read_model(tmp_path / "export")
    with torch.no_grad():
        first, second = (m.score(m.encode_images(images), m.encode_pairs(SPACE)) for m in (model, again))
    assert torch.equal(first.composition, second.composition)


FEATURE_MAPS: dict[str, dict[str, Any]] = {
    "ResNet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 32, "patch_size": None},
    "ConvNeXt": {"image_size": [64, 96], "timm_model_name": "convnext_atto", "timm_pool": "",
                 "timm_proj": "mlp"},
    "FastViT": {"image_size": 64, "timm_model_name": "fastvit_t8", "timm_pool": "avg", "timm_proj": None},
    "Swin": {"image_size": 224, "timm_model_name": "swin_tiny_patch4_window7_224", "timm_pool": "",
             "timm_proj": "linear"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "method"), [*((kind, "refiner") for kind in FEATURE_MAPS), ("ResNet", "troika")]
)
def test_a_network_without_blocks_trains_what_lies_outside_the_image_tower(
    tmp_path: Path, kind: str, method: str
) -> None:
    config = {**CONFIG, "custom_text": kind != "ResNet", "vision_cfg": FEATURE_MAPS[kind]}
    (tmp_path / "model.json").write_text(json.dumps(config))
    backbone = load_backbone(str(tmp_path / "model.json"), "none")
    assert any("adapters and queries are off" in note for note in backbone.notes)
    tower, size = backbone.visual, backbone.spec.preprocess["size"]
    images = torch.randn(2, 3, *([size] * 2 if isinstance(size, int) else size))
    want = backbone.clip.encode_image(images)
    assert torch.allclose(encoded(tower, images), want, atol=1e-5)
    x = tower.embed(images)
    assert x.shape == (2, images[0, 0].numel() // tower.patch_size**2, tower.width)
    assert tower.project_tokens(x).shape == (2, x.shape[1], backbone.embed_dim)
    model = build_model(method, backbone, method_section(method)(), SPACE).train()
    scores = model.score(model.encode_images(images), model.encode_pairs(SPACE))
    model.loss(scores, torch.tensor([0, 1]), SPACE, TrainConfig()).backward()
    assert all(p.grad is not None for p in model.trainable_parameters().values())
    export_model(
        tmp_path / "export", model.eval(), replace(INFO, method=method), dtype="fp32", with_backbone=True
    )
    again, _ = read_model(tmp_path / "export")
    assert torch.equal(again.encode_images(images).composition, model.encode_images(images).composition)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_vit_with_relative_positions_is_read_at_its_last_tokens(pool: str) -> None:
    torch.manual_seed(0)
    prefix = int(pool == "token")
    trunk = VisionTransformerRelPos(
        img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=4, num_classes=0,
        class_token=bool(prefix), global_pool=pool, fc_norm=pool == "avg", init_values=0.1,
    ).eval()  # fmt: skip
    visual = in_open_clip(trunk)
    tower, images = open_image_tower(visual), torch.randn(2, 3, SIZE, SIZE)
    assert torch.allclose(encoded(tower, images), visual(images), atol=1e-5)
    x = tower.embed(images)
    assert (tower.depth, tower.patch_size, x.shape) == (0, PATCH, (2, prefix + 16, WIDTH))
    assert torch.allclose(tower.pool_and_project(x[:, :1])[0], tower.project_tokens(x[:, :1])[:, 0])


def test_a_version_without_a_private_function_is_named() -> None:
    with pytest.raises(EnvironmentLacksError, match=rf"timm {version('timm')} has no _gone") as caught:
        private_method(nn.Linear(1, 1), "_gone", "timm")
    assert f"timm=={CHECKED['timm']}" in caught.value.hint


def test_another_kind_of_tower_is_named() -> None:
    with pytest.raises(ConfigError, match="Linear"):
        open_image_tower(nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="SimpleNamespace"):
        open_image_tower(SimpleNamespace(trunk=SimpleNamespace()))  # type: ignore[arg-type]
