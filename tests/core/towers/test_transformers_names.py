"""CLIP weights of the transformers library give what transformers computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.errors import ConfigError
from tests.core.towers.small_models import CONFIG, IMAGES, activation, shrink

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own


@pytest.mark.parametrize("activation_name", ["quick_gelu", "gelu"])
def test_weights_of_transformers_compute_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, activation_name: str
) -> None:
    shrink(monkeypatch)
    vision, text = CONFIG["vision_cfg"], CONFIG["text_cfg"]
    common = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": activation_name}
    config = transformers.CLIPConfig(
        text_config={**common, "hidden_size": text["width"], "intermediate_size": 4 * text["width"],
                     "vocab_size": text["vocab_size"], "max_position_embeddings": text["context_length"],
                     "eos_token_id": 49407, "bos_token_id": 49406},
        vision_config={**common, "hidden_size": vision["width"], "intermediate_size": 4 * vision["width"],
                       "image_size": vision["image_size"], "patch_size": vision["patch_size"]},
        projection_dim=CONFIG["embed_dim"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="activation"):
        load_backbone("ViT-B-32", str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    preprocess = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2], "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocess))
    loaded = load_backbone("ViT-B-32", str(tmp_path / "model.safetensors"))
    assert activation(loaded) == ("QuickGELU" if activation_name == "quick_gelu" else "GELU")
    assert loaded.spec.preprocess["mean"] == [0.5, 0.5, 0.5]
    assert loaded.spec.preprocess["interpolation"] == "bilinear"
    ids = torch.tensor([loaded.text.tokens.ids("a photo of a dog")])
    with torch.no_grad():
        pooled = model.vision_model(IMAGES).pooler_output
        assert torch.allclose(loaded.clip.encode_image(IMAGES), model.visual_projection(pooled), atol=1e-5)
        pooled = model.text_model(ids).pooler_output
        want = model.text_projection(pooled)
        assert torch.allclose(loaded.text.encode_texts(["a photo of a dog"]), want, atol=1e-5)
    assert loaded.logit_scale == pytest.approx(model.logit_scale.exp().item())
