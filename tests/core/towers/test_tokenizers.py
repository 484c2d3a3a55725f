"""Every model reads a prompt as open_clip does, with its own type of tokenizer and without the network."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from refiner_cli.core.towers.backbone import Backbone, build_backbone, load_backbone
from refiner_cli.errors import ConfigError, ModelFileError
from tests.core.towers.small_models import CONFIG, forbid_downloads
from tests.core.towers.small_tokenizers import KINDS, build_tokenizer

pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own

PROMPTS = ["a photo of wet apple", "a photo of red dog", "a photo of sliced key"]
NAMES = [("wet", "apple"), ("red", "dog"), ("sliced", "key")]


def backbone_with(kind: str, folder: Path) -> Backbone:
    """A small model with a tokenizer of a kind, from a folder."""
    settings, count = build_tokenizer(kind, folder)
    text = {"context_length": 12, "vocab_size": count, "width": 32, "heads": 2, "layers": 2, **settings}
    config: dict[str, Any] = {
        **CONFIG,
        "custom_text": True,
        "text_cfg": {**text, "hf_tokenizer_name": "some/where"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    torch.manual_seed(0)
    state = open_clip.CustomTextCLIP(
        CONFIG["embed_dim"], CONFIG["vision_cfg"], config["text_cfg"]
    ).state_dict()
    save_file(state, folder / "open_clip_model.safetensors")
    return load_backbone(f"local-dir:{folder}", "own")


def theirs(backbone: Backbone, folder: Path, texts: list[str]) -> torch.Tensor:
    """The text vectors of open_clip's own tokenizer and encoder."""
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        return backbone.clip.encode_text(tokenizer(texts, context_length=backbone.text.context_length))


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_equal_the_models_own_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    forbid_downloads(monkeypatch)
    backbone = backbone_with(kind, tmp_path)
    text = backbone.text
    want = theirs(backbone, tmp_path, PROMPTS)
    assert torch.allclose(text.encode_texts(PROMPTS), want, atol=1e-5)
    states, objects = (torch.stack([text.embed_label(pair[part]) for pair in NAMES]) for part in (0, 1))
    pairs = text.encode_pairs(text.embed_context("a photo of"), states, objects, torch.arange(len(NAMES)))
    assert torch.allclose(pairs, want, atol=1e-5)
    singles = text.encode(text.embed_context("a photo of"), objects)
    want = theirs(backbone, tmp_path, [f"a photo of {obj}" for _, obj in NAMES])
    assert torch.allclose(singles, want, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_tokenizer_is_read_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "model").mkdir()
    backbone = backbone_with(kind, tmp_path / "model")
    forbid_downloads(monkeypatch)
    assert backbone.text.tokens.save is not None
    backbone.text.tokens.save(str(tmp_path / "tokenizer"))
    state = backbone.clip.state_dict()
    again = build_backbone(backbone.spec, state, tmp_path / "tokenizer")
    assert torch.equal(again.text.encode_texts(PROMPTS), backbone.text.encode_texts(PROMPTS))
    with pytest.raises(ModelFileError, match=r"tokenizer of the stored backbone .* is missing"):
        build_backbone(backbone.spec, state)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match="holds no tokenizer"):
        build_backbone(backbone.spec, state, tmp_path / "empty")
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{torn")
    with pytest.raises(ModelFileError, match=r"tokenizer .* cannot be read"):
        build_backbone(backbone.spec, state, tmp_path / "tokenizer")


def test_a_tokenizer_never_runs_code_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_downloads(monkeypatch)
    backbone = backbone_with("t5", tmp_path)
    proof = tmp_path / "proof"
    (tmp_path / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass Evil: pass\n")
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    file.write_text(json.dumps(config | {"tokenizer_class": "Evil"}))
    spec = backbone.spec
    spec.model["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    with contextlib.suppress(ModelFileError):
        build_backbone(spec, backbone.clip.state_dict(), tmp_path)
    assert not proof.exists()


def test_a_tokenizer_mode_that_is_not_known_is_refused(tmp_path: Path) -> None:
    backbone = backbone_with("bert", tmp_path)
    backbone.spec.model["text_cfg"]["tokenizer_mode"] = "clips"
    with pytest.raises(ConfigError, match="'clips' is not supported"):
        build_backbone(backbone.spec, backbone.clip.state_dict(), tmp_path)
