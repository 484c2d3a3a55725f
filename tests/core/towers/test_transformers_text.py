"""Text towers of the transformers library: equal to open_clip's own, trained, exported, read again."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.config import method_section
from refiner_cli.core.model_io.checkpoint import read_model
from refiner_cli.core.model_io.export import export_model
from refiner_cli.core.model_io.zero_shot import zero_shot_model
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.towers.backbone import Backbone, load_backbone
from refiner_cli.core.towers.text_chunks import pick_chunk_size
from refiner_cli.errors import ConfigError, EnvironmentLacksError, ModelFileError
from tests.conftest import Cli
from tests.core.cases import SPACE, steps
from tests.core.towers.small_models import CONFIG, IMAGES, forbid_downloads, serve, shrink
from tests.core.towers.small_tokenizers import build_nllb, build_tokenizer
from tests.core.towers.test_image import INFO

pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own

PROMPTS = ["a photo of wet apple", "a photo of an extremely old red dog", "sliced key"]
NAMES = [("wet", "apple"), ("red", "dog"), ("sliced", "key")]
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 40, "type_vocab_size": 1}  # fmt: skip
# name -> the tokenizer's kind, what its config.json says, open_clip's settings, the class of the encoder
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "xlm-roberta": (
        "xlm", {"model_type": "xlm-roberta", "pad_token_id": 1, **BERT},
        {"hf_pooler_type": "mean_pooler"}, "XLMRobertaModel",
    ),
    "roberta": (
        "roberta", {"model_type": "roberta", "pad_token_id": 1, **BERT},
        {"hf_proj_type": "linear", "hf_pooler_type": "mean_pooler"}, "RobertaModel",
    ),
    "mt5": (
        "mt5", {"model_type": "mt5", "pad_token_id": 0, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2,
                "num_heads": 3, "feed_forward_proj": "gated-gelu"},
        {"hf_pooler_type": "mean_pooler"}, "MT5Stack",
    ),
    "nllb": (
        "nllb", {"model_type": "m2m_100", "pad_token_id": 1, "d_model": 32, "encoder_layers": 2,
                 "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "max_position_embeddings": 40,
                 "scale_embedding": True},
        {"hf_proj_type": "linear", "hf_pooler_type": "cls_pooler"}, "M2M100Encoder",
    ),
    "bert": (
        "bert", {"model_type": "bert", "pad_token_id": 0, **BERT},
        {"hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 24}, "BertModel",
    ),
}  # fmt: skip


def model_folder(kind: str, folder: Path) -> Path:
    """A small model of a kind as a folder on disk, its tokenizer and random weights in it."""
    tokenizer, sizes, settings, _ = KINDS[kind]
    folder.mkdir()
    count = build_nllb(folder) if tokenizer == "nllb" else build_tokenizer(tokenizer, folder)[1]
    (folder / "config.json").write_text(json.dumps({**sizes, "vocab_size": count}))
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": "some/where", **settings}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**CONFIG, "text_cfg": text}}))
    torch.manual_seed(0)
    theirs = open_clip.CustomTextCLIP(
        CONFIG["embed_dim"], CONFIG["vision_cfg"], {**text, "hf_model_pretrained": False}
    )
    for name, parameter in theirs.named_parameters():  # zero and one would hide what is left out
        if name != "logit_scale":
            nn.init.normal_(parameter, 0.1 if parameter.ndim == 1 else 0, 0.2)
    state = {name: value.contiguous() for name, value in theirs.state_dict().items()}
    if kind == "bert":  # as versions of the library before 4.31 stored it
        state["text.transformer.embeddings.position_ids"] = torch.arange(40)[None]
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def theirs(folder: Path) -> Any:
    """open_clip's model of a folder."""
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    config["text_cfg"]["hf_model_pretrained"] = False
    model = open_clip.CustomTextCLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    open_clip.load_checkpoint(model, str(folder / "open_clip_model.safetensors"))
    return model.eval()


def pair_vectors(backbone: Backbone, chunk: int = 512) -> Tensor:
    text = backbone.text
    states, objects = (torch.stack([text.embed_label(pair[part]) for pair in NAMES]) for part in (0, 1))
    context = text.embed_context("a photo of")
    return text.encode_pairs(context, states, objects, torch.arange(len(NAMES)), chunk_size=chunk)


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(request.param, tmp_path_factory.mktemp("models") / request.param)


def test_vectors_and_zero_shot_logits_equal_open_clips(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_downloads(monkeypatch)
    backbone, model = load_backbone(f"local-dir:{folder}", "own"), theirs(folder)
    length = backbone.text.context_length
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}", context_length=length)
    with torch.no_grad():
        want = model.encode_text(tokenizer(PROMPTS, context_length=length))
        assert torch.allclose(backbone.text.encode_texts(PROMPTS), want, atol=1e-5)
        alone = torch.cat([backbone.text.encode_texts([prompt]) for prompt in PROMPTS])
        assert torch.allclose(alone, want, atol=1e-5)  # padding changes nothing
        prompts = [f"a photo of {state} {obj}" for state, obj in NAMES]
        want = model.encode_text(tokenizer(prompts, context_length=length))
        assert torch.allclose(pair_vectors(backbone), want, atol=1e-5)
        assert torch.allclose(pair_vectors(backbone, chunk=2), want, atol=1e-5)
        zero_shot = build_model("clip", backbone, method_section("clip")(), SPACE).eval()
        scores = zero_shot.score(zero_shot.encode_images(IMAGES), zero_shot.encode_pairs(SPACE)).composition
        vectors = model.encode_text(
            tokenizer([f"a photo of {state} {obj}" for state, obj in SPACE.pairs], context_length=length)
        )
        images = model.encode_image(IMAGES, normalize=True)
        logits = model.logit_scale.exp() * images @ F.normalize(vectors, dim=-1).T
    assert torch.allclose(scores, logits, atol=1e-4)
    assert type(backbone.clip.text.transformer).__name__ == KINDS[folder.name][3]
    assert not backbone.text.uses_prefix_cache


def test_gradients_reach_every_learned_word_and_chunks_change_none(folder: Path) -> None:
    backbone = load_backbone(f"local-dir:{folder}", "own")
    text = backbone.text
    torch.manual_seed(0)
    parts = [nn.Parameter(torch.randn(count, text.width)) for count in (3, 2, 4)]
    state = torch.tensor([0, 0, 1, 1])
    found = []
    for chunk in (512, 3):
        out = text.encode_pairs(*parts, state, chunk_size=chunk)
        found.append(torch.autograd.grad(out.square().sum(), parts))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*found, strict=True))
    assert all((rows.abs().sum(1) > 0).all() for rows in found[0])


def test_it_trains_exports_and_is_read_without_the_library_asking_the_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    forbid_downloads(monkeypatch)
    backbone = load_backbone(f"local-dir:{folder}", "own")
    for method in ("refiner", "csp"):
        model = build_model(method, backbone, method_section(method)(), SPACE)
        losses = steps(model, IMAGES)
        assert losses[-1] < losses[0]
    assert not any(name.startswith("clip.") for name in model.trainable_parameters())
    info = dataclasses.replace(INFO, method="csp")
    export_model(tmp_path / "export", model.eval(), info, dtype="fp32", with_backbone=True)
    again, _ = read_model(tmp_path / "export")
    for one in (model, again):
        one.eval()
    with torch.no_grad():
        assert torch.equal(model.encode_pairs(SPACE).pairs, again.encode_pairs(SPACE).pairs)
        mine, theirs = (one.backbone.text.encode_texts(PROMPTS) for one in (model, again))
    assert torch.equal(mine, theirs)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    outcome = cli("predict", str(tmp_path / "export"), str(tmp_path / "red.png"))
    assert outcome.code == 0
    (row,) = map(json.loads, outcome.out.splitlines())
    assert {one["state"] for one in row["predictions"]} <= {"wet", "red", "old"}


def test_prompts_are_planned_without_padding(tmp_path: Path) -> None:
    backbone = load_backbone(f"local-dir:{model_folder('bert', tmp_path / 'bert')}", "own")
    sizes = []
    for length in (24, 4000):
        backbone.text.context_length = length
        sizes.append(pick_chunk_size(0, backbone.text, 10**9, torch.float32, 3, 2**34)[0])
    assert sizes[0] == sizes[1]


def test_a_language_marks_prompts_and_stays_with_the_model(tmp_path: Path) -> None:
    folder = model_folder("nllb", tmp_path / "nllb")
    english, german = (load_backbone(f"local-dir:{folder}{end}", "own") for end in ("", "@deu_Latn"))
    assert german.spec.name.endswith("@deu_Latn")
    assert english.text.tokens.prefix_ids != german.text.tokens.prefix_ids
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}", context_length=77)
    ids = tokenizer(["wet apple"])
    ids[0, 0] = tokenizer.tokenizer.convert_tokens_to_ids("deu_Latn")
    with torch.no_grad():
        assert torch.allclose(
            german.text.encode_texts(["wet apple"]), theirs(folder).encode_text(ids), atol=1e-5
        )
    model = build_model("csp", german, method_section("csp")(), SPACE).eval()
    for included in (True, False):
        info = dataclasses.replace(INFO, method="csp")
        export_model(tmp_path / f"{included}", model, info, dtype="fp32", with_backbone=included)
        again, _ = read_model(tmp_path / f"{included}")
        assert again.backbone.text.tokens.prefix_ids == german.text.tokens.prefix_ids


def test_a_run_finds_its_backbone_by_name_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder("nllb", tmp_path / "nllb")
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), **KINDS["nllb"][2]}
    shrink(monkeypatch, "nllb-clip-base", text_cfg=text)
    serve(monkeypatch, folder / "open_clip_model.safetensors")
    backbone = load_backbone("nllb-clip-base@deu_Latn", "v1")
    model = build_model("csp", backbone, method_section("csp")(), SPACE).eval()
    info = dataclasses.replace(INFO, method="csp")
    export_model(tmp_path / "export", model, info, dtype="fp32", with_backbone=False)
    again, _ = read_model(tmp_path / "export")
    with torch.no_grad():
        assert torch.equal(again.encode_pairs(SPACE).pairs, model.encode_pairs(SPACE).pairs)
    zero_shot, _ = zero_shot_model("nllb-clip-base@deu_Latn:v1")
    assert zero_shot.backbone.text.tokens.prefix_ids == backbone.text.tokens.prefix_ids


def test_a_language_that_cannot_be_set_is_named(tmp_path: Path) -> None:
    nllb = model_folder("nllb", tmp_path / "nllb")
    with pytest.raises(ConfigError, match="does not know the language 'fra_Latn'"):
        load_backbone(f"local-dir:{nllb}@fra_Latn", "own")
    bert = model_folder("bert", tmp_path / "bert")
    with pytest.raises(ConfigError, match="does not mark languages"):
        load_backbone(f"local-dir:{bert}@deu_Latn", "own")
    with pytest.raises(ConfigError, match="CLIP's tokenizer does not mark languages"):
        load_backbone("tiny@deu_Latn", "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, "a text tower of the kind 'gpt2'"),
        ({"num_hidden_layers": 10**6}, "an impossible num_hidden_layers"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_size": 33}, "cannot be built"),
    ],
)
def test_a_configuration_that_gives_no_tower_is_named(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    folder = model_folder("bert", tmp_path / "bert")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ConfigError, match=words):
        load_backbone(f"local-dir:{folder}", "own")


def test_a_stored_model_cannot_smuggle_a_configuration_in(tmp_path: Path) -> None:
    backbone = load_backbone(f"local-dir:{model_folder('bert', tmp_path / 'bert')}", "own")
    model = build_model("csp", backbone, method_section("csp")(), SPACE).eval()
    export_model(
        tmp_path / "export", model, dataclasses.replace(INFO, method="csp"), dtype="fp32", with_backbone=True
    )
    file = tmp_path / "export" / "config.json"
    kept = json.loads(file.read_text())
    for key, value in (("auto_map", {"AutoModel": "evil.Evil"}), ("num_hidden_layers", 10**9)):
        config = json.loads(json.dumps(kept))
        config["backbone"]["model"]["text_cfg"]["transformers"][key] = value
        file.write_text(json.dumps(config))
        with pytest.raises(ModelFileError, match=key):
            read_model(tmp_path / "export")
    config = json.loads(json.dumps(kept))
    del config["backbone"]["model"]["text_cfg"]["transformers"]
    file.write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match="hf_model_name and transformers go together"):
        read_model(tmp_path / "export")


def test_without_the_library_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_downloads(monkeypatch)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EnvironmentLacksError, match="roberta-base needs the package transformers") as caught:
        load_backbone("roberta-ViT-B-32", "laion2b_s12b_b32k")
    assert "pip install" in caught.value.hint
