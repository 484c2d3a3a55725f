"""CoCa: a pooler of attention, and a class token behind the prompt; its caption decoder is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from refiner_cli.config import TrainConfig, method_section
from refiner_cli.core.model_io.checkpoint import read_model
from refiner_cli.core.model_io.export import export_model
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.towers.backbone import Backbone, load_backbone
from tests.core.cases import SPACE
from tests.core.towers.small_models import IMAGES, TEXT, VISION, serve, shrink
from tests.core.towers.test_image import INFO

CONFIG: dict[str, Any] = {
    "embed_dim": 48,
    "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 2,
                   "output_tokens": True},
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}  # fmt: skip
PROMPTS = ["a photo of wet dog", "a photo of an extremely old car", "key"]


def published(folder: Path) -> tuple[Any, Backbone]:
    """open_clip's CoCa with random weights, and the backbone of its files."""
    torch.manual_seed(0)
    theirs = open_clip.CoCa(**CONFIG).eval()
    for parameter in theirs.parameters():  # zero and one everywhere would hide what is left out
        nn.init.normal_(parameter, 0.1 if parameter.ndim == 1 else 0, 0.2)
    (folder / "coca.json").write_text(json.dumps(CONFIG))
    state = {name: value.contiguous() for name, value in theirs.state_dict().items()}
    save_file(state, folder / "coca.safetensors")
    return theirs, load_backbone(str(folder / "coca.json"), str(folder / "coca.safetensors"))


def test_both_towers_equal_open_clips(tmp_path: Path) -> None:
    theirs, ours = published(tmp_path)
    with torch.no_grad():
        tower = ours.visual
        x = tower.embed(IMAGES)
        for index in range(tower.depth):
            x = tower.block(index, x, None)
        pooled, tokens = tower.pool_and_project(x)
        assert torch.allclose(pooled, theirs.encode_image(IMAGES, normalize=False), atol=1e-5)
        assert torch.allclose(ours.clip.encode_image(IMAGES), pooled, atol=1e-5)
        assert tower.project_tokens(tokens).shape == (2, 17, 48)
        want = theirs.encode_text(open_clip.tokenize(PROMPTS, 16), normalize=False)
        assert torch.allclose(ours.text.encode_texts(PROMPTS), want, atol=1e-5)
        text = ours.text
        state, obj = (text.embed_label(word)[None] for word in ("wet", "dog"))
        pair = text.encode_pairs(text.embed_context("a photo of"), state, obj, torch.tensor([0]))
        assert torch.allclose(pair, want[:1], atol=1e-5)


def test_a_single_token_is_projected_as_the_pooler_reads_it_alone(tmp_path: Path) -> None:
    _, ours = published(tmp_path)
    tower = ours.visual
    x = torch.randn(3, 1, tower.width)
    assert torch.allclose(tower.pool_and_project(x)[0], tower.project_tokens(x)[:, 0], atol=1e-5)


def test_it_trains_exports_and_reloads(tmp_path: Path) -> None:
    _, backbone = published(tmp_path)
    for method in ("refiner", "troika"):
        model = build_model(method, backbone, method_section(method)(), SPACE).train()
        scores = model.score(model.encode_images(IMAGES), model.encode_pairs(SPACE))
        model.loss(scores, torch.tensor([0, 1]), SPACE, TrainConfig()).backward()
        assert all(p.grad is not None for p in model.trainable_parameters().values())
    model = build_model("csp", backbone, method_section("csp")(), SPACE).eval()
    info = type(INFO)(**{**vars(INFO), "method": "csp"})
    export_model(tmp_path / "export", model, info, dtype="fp32", with_backbone=True)
    again, _ = read_model(tmp_path / "export")
    with torch.no_grad():
        ours, theirs = (F.normalize(m.encode_pairs(SPACE).pairs, dim=-1) for m in (model, again))
    assert torch.equal(ours, theirs)


def test_a_run_finds_its_backbone_by_name_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path)
    shrink(monkeypatch, "coca_ViT-B-32", **CONFIG)
    serve(monkeypatch, tmp_path / "coca.safetensors")
    backbone = load_backbone("coca_ViT-B-32", "laion2b_s13b_b90k")
    model = build_model("csp", backbone, method_section("csp")(), SPACE).eval()
    info = type(INFO)(**{**vars(INFO), "method": "csp"})
    export_model(tmp_path / "export", model, info, dtype="fp32", with_backbone=False)
    again, _ = read_model(tmp_path / "export")
    assert again.backbone.fingerprint() == backbone.fingerprint()
