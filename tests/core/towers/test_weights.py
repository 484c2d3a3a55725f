"""Weights by file are the weights by tag, in every form in which people have them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from refiner_cli.core.towers import tiny, weights_profile
from refiner_cli.core.towers.architectures import find_architecture
from refiner_cli.core.towers.backbone import load_backbone, reload_backbone
from refiner_cli.core.towers.local_weights import local_digest, local_weights
from refiner_cli.core.towers.sidecar import read_sidecar
from refiner_cli.core.towers.weights import find_weights
from refiner_cli.core.towers.weights_profile import (
    WeightsProfile,
    file_profile,
    published_sha256,
    tag_profile,
)
from refiner_cli.errors import ConfigError, FetchError, ModelFileError
from tests.core.towers.small_models import (
    CONFIG,
    StateDict,
    activation,
    archive,
    forbid_downloads,
    image_vectors,
    serve,
    shrink,
    weights,
)

PUBLISHED = [(name, tag) for name, tag in open_clip.list_pretrained() if name in open_clip.list_models()]
GELU_TAG = "laion2b_s34b_b79k"


def settings(profile: WeightsProfile) -> dict[str, Any]:
    return profile.comparable()


def test_a_file_given_with_its_tag_is_the_tag_for_all_published_weights(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"weights")
    for name, tag in PUBLISHED:
        architecture = find_architecture(name)
        by_tag, by_file = (find_weights(architecture, text) for text in (tag, f"{tag}={file}"))
        assert settings(by_file.profile) == settings(by_tag.profile)
        assert by_file.file == file
    assert len(PUBLISHED) > 130


def test_a_tag_without_a_word_on_the_activation_has_that_of_its_model() -> None:
    silent = [
        (name, tag) for name, tag in PUBLISHED if "quick_gelu" not in open_clip.get_pretrained_cfg(name, tag)
    ]
    by_model = {(name, tag): bool(open_clip.get_model_config(name).get("quick_gelu")) for name, tag in silent}
    assert {pair: tag_profile(*pair).quick_gelu for pair in silent} == by_model
    assert by_model["roberta-ViT-B-32", "laion2b_s12b_b32k"]
    assert not by_model["ViT-L-14", "laion2b_s32b_b82k"]


def test_a_file_alone_is_never_run_otherwise_than_one_of_its_models_tags(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"weights")
    asked = 0
    for name in sorted({name for name, _ in PUBLISHED}):
        tags = [tag for n, tag in PUBLISHED if n == name]
        each = [settings(tag_profile(name, tag)) for tag in tags]
        if any(one != each[0] for one in each):
            asked += 1
            with pytest.raises(ConfigError) as caught:
                file_profile(name, file, WeightsProfile(), from_openai=False)
            assert f"--pretrained {tags[0]}={file} (" in caught.value.hint
        else:
            profile, _ = file_profile(name, file, WeightsProfile(), from_openai=False)
            assert settings(profile) == each[0]
    assert asked > 5


def test_a_file_that_leaves_its_activation_open_is_refused_with_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch)
    save_file(weights(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="does not tell with which activation") as caught:
        load_backbone("ViT-B-32", str(tmp_path / "w.safetensors"))
    assert f"--pretrained openai={tmp_path / 'w.safetensors'} (QuickGELU" in caught.value.hint
    assert "=" + str(tmp_path / "w.safetensors") + " (GELU" in caught.value.hint


def test_a_name_whose_weights_all_agree_needs_no_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, "ViT-L-14-336")
    shrink(monkeypatch, "ViT-M-16")  # has no published weights
    save_file(weights(), tmp_path / "w.safetensors")
    assert activation(load_backbone("ViT-L-14-336", str(tmp_path / "w.safetensors"))) == "QuickGELU"
    assert activation(load_backbone("ViT-M-16", str(tmp_path / "w.safetensors"))) == "GELU"


def as_is(state: StateDict) -> Any:
    return state


FORMS: dict[str, Callable[[StateDict], Any]] = {
    "plain": as_is,
    "fp16": lambda state: {name: value.half() for name, value in state.items()},
    "bf16": lambda state: {name: value.bfloat16() for name, value in state.items()},
    "checkpoint": lambda state: {"epoch": 3, "state_dict": state},
    "distributed": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "old": lambda state: {
        **state,
        "attn_mask": torch.zeros(16, 16),
        "logit_scale": state["logit_scale"][None],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_gives_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    shrink(monkeypatch)
    state = weights()
    torch.save(FORMS[form](state), tmp_path / "w.pt")
    torch.save(state, tmp_path / "plain.pt")
    asked = serve(monkeypatch, tmp_path / "plain.pt")
    by_tag = load_backbone("ViT-B/32", "openai")
    assert len(asked) == 1
    assert activation(by_tag) == "QuickGELU"
    by_file = load_backbone("ViT-B-32", f"openai={tmp_path / 'w.pt'}")
    assert by_file.spec.model == by_tag.spec.model
    assert by_file.spec.preprocess == by_tag.spec.preprocess
    tolerance = {"fp16": 2e-3, "bf16": 2e-2}.get(form, 0)
    assert torch.allclose(image_vectors(by_file), image_vectors(by_tag), rtol=0, atol=tolerance)
    assert all(value.dtype == torch.float32 for value in by_file.clip.state_dict().values())
    again = reload_backbone(by_file.spec)
    assert again.fingerprint() == by_file.fingerprint()
    other = load_backbone("ViT-B-32", f"{GELU_TAG}={tmp_path / 'w.pt'}")
    assert activation(other) == "GELU"


def test_openais_archive_is_read_and_means_quickgelu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    state = weights()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch discourages TorchScript
        archive(state, tmp_path / "ViT-B-32.pt")
    forbid_downloads(monkeypatch)
    monkeypatch.setattr(torch.jit, "load", None)
    loaded = load_backbone("ViT-B-32", str(tmp_path / "ViT-B-32.pt"))
    assert activation(loaded) == "QuickGELU"
    assert any("OpenAI's format" in note for note in loaded.notes)
    assert all(
        torch.equal(loaded.clip.state_dict()[name], value.half().float()) for name, value in state.items()
    )


def test_a_file_is_recognised_by_its_published_sha256(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch)
    save_file(weights(), tmp_path / "w.safetensors")
    digits = hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    true_url = open_clip.get_pretrained_url

    def url(name: str, tag: str) -> str:
        address = "https://github.com/mlfoundations/open_clip/releases/vit_b_32-quickgelu-laion400m_e32-"
        return f"{address}{digits[:8]}.pt" if tag == "laion400m_e32" else true_url(name, tag)

    monkeypatch.setattr(open_clip, "get_pretrained_url", url)
    loaded = load_backbone("ViT-B-32", str(tmp_path / "w.safetensors"))
    expected = tag_profile("ViT-B-32", "laion400m_e32")
    assert (activation(loaded) == "QuickGELU") == expected.quick_gelu
    assert any("laion400m_e32, by its sha256" in note for note in loaded.notes)


def test_the_sha256_of_the_table_is_read_where_it_stands() -> None:
    openai = open_clip.get_pretrained_url("ViT-B-32", "openai")
    assert len(published_sha256(openai)) == 64
    found = [published_sha256(open_clip.get_pretrained_url(*pair)) for pair in PUBLISHED]
    assert sum(bool(digits) for digits in found) > 20
    assert weights_profile.published_sha256("https://example.org/mlfoundations/weights-final.pt") == ""


@pytest.mark.parametrize("quick", [True, False])
def test_a_configuration_beside_the_file_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    shrink(monkeypatch)
    save_file(weights(), tmp_path / "open_clip_model.safetensors")
    beside = {
        "model_cfg": {**CONFIG, "quick_gelu": quick},
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resize_mode": "squash"},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(beside))
    ways = ("ViT-B-32", str(tmp_path / "open_clip_model.safetensors")), (f"local-dir:{tmp_path}", "openai")
    for name, pretrained in ways:
        loaded = load_backbone(name, pretrained)
        assert activation(loaded) == ("QuickGELU" if quick else "GELU")
        assert loaded.spec.preprocess["mean"] == [0.1, 0.2, 0.3]
        assert loaded.spec.preprocess["resize_mode"] == "squash"
        assert loaded.spec.preprocess["size"] == 32
        assert reload_backbone(loaded.spec).fingerprint() == loaded.fingerprint()


OTHERS = {  # what another model's configuration may lie beside the file
    "open_clip": {"model_cfg": {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "patch_size": 16}}},
    "transformers": {"model_type": "clip", "vision_config": {"hidden_size": 64, "patch_size": 16}},
    "deeper": {"model_type": "clip", "vision_config": {"hidden_size": 64, "num_hidden_layers": 3}},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_configuration_of_another_model_beside_the_file_is_ignored(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OTHERS[kind]))
    assert read_sidecar(tmp_path / "w.safetensors", CONFIG) == (WeightsProfile(), "")


def test_transformers_may_leave_sizes_open_or_name_another_image_size(tmp_path: Path) -> None:
    for vision in ({}, {"hidden_size": 64, "patch_size": 8, "image_size": 48}):
        content = {"model_type": "clip", "vision_config": {**vision, "hidden_act": "gelu"}}
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert read_sidecar(tmp_path / "w.safetensors", CONFIG)[0] == WeightsProfile(False)


@pytest.mark.parametrize(
    ("key", "value"), [("std", [1, 0, 1]), ("mean", "grey"), ("resize_mode", ["squash"]), ("fill_color", -1)]
)
def test_impossible_preprocessing_is_named(tmp_path: Path, key: str, value: object) -> None:
    file = tmp_path / "open_clip_config.json"
    file.write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {key: value}}))
    with pytest.raises(ConfigError, match=rf"preprocess_cfg\.{key}"):
        load_backbone(f"local-dir:{tmp_path}", "none")


def test_a_hub_name_brings_its_own_configuration_and_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(weights(), tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0, 0, 0]}})
    )

    def download(repository: str, file: str | None = None) -> str:
        assert repository == "someone/model"
        return str(tmp_path / ("config.json" if file == "open_clip_config.json" else "w.safetensors"))

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_hf", download)
    loaded = load_backbone("hf-hub:someone/model", "openai")
    assert (loaded.spec.pretrained, loaded.spec.preprocess["mean"]) == ("own", [0, 0, 0])
    with pytest.raises(ConfigError, match="'laion2b' is neither"):
        load_backbone("hf-hub:someone/model", "laion2b")


def test_a_failed_download_says_how_to_pass_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)

    def download(entry: Any) -> str:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    with pytest.raises(FetchError, match="no route to host") as caught:
        load_backbone("ViT-B-32", "openai")
    assert "--pretrained TAG=FILE" in caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_refused_model_is_refused_before_anything_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    pooled = {"timm_model_name": "convnext_atto", "timm_pool": "abs_attn", "timm_proj": "linear"}
    shrink(monkeypatch, vision_cfg={"image_size": 64, **pooled}, custom_text=True)
    forbid_downloads(monkeypatch)
    with pytest.raises(ConfigError, match="image tower"):
        load_backbone("ViT-B-32", "laion2b_s34b_b79k")


@pytest.mark.parametrize("size", [48, [32, 48]])
def test_positions_of_another_image_size_are_interpolated_as_open_clip_does(
    tmp_path: Path, size: int | list[int]
) -> None:
    torch.save(weights(), tmp_path / "w.pt")
    config = {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "image_size": size}}
    (tmp_path / "model.json").write_text(json.dumps(config))
    loaded = load_backbone(str(tmp_path / "model.json"), str(tmp_path / "w.pt"))
    count = loaded.clip.visual.positional_embedding.shape[0]
    assert loaded.notes == (f"image position embeddings interpolated from 17 to {count} positions",)
    theirs = open_clip.CLIP(**config)
    open_clip.load_checkpoint(theirs, str(tmp_path / "w.pt"))
    assert torch.equal(loaded.clip.visual.positional_embedding, theirs.visual.positional_embedding)


def without(name: str) -> Callable[[StateDict], StateDict]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def changed(name: str, value: torch.Tensor) -> Callable[[StateDict], StateDict]:
    return lambda state: {**state, name: value}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (without("visual.proj"), "the tensor 'visual.proj' is missing"),
        (changed("extra", torch.zeros(1)), "the tensor 'extra' is left over"),
        (changed("visual.proj", torch.zeros(3, 4)), r"'visual.proj' has the shape \[3, 4\] instead"),
        (changed("visual.proj", torch.zeros(64, 48).int()), "'visual.proj' holds int32 numbers"),
        (changed("visual.proj", torch.zeros(64, 48).cfloat()), "'visual.proj' holds complex64 numbers"),
        (
            changed("visual.proj", torch.zeros(64, 48).to(torch.float8_e4m3fn)),
            "'visual.proj' holds float8_e4m3fn numbers",
        ),
        (changed("visual.proj", torch.full((64, 48), torch.inf)), "'visual.proj' holds numbers that are not"),
        (lambda state: {}, "holds no tensors"),
        (lambda state: [1, 2], "holds no tensors"),
        (lambda state: {**state, "code": os.system}, "cannot be read"),
    ],
)  # fmt: skip
def test_an_error_names_the_file_and_the_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[StateDict], Any], says: str
) -> None:
    shrink(monkeypatch)
    torch.save(damage(weights()), tmp_path / "w.pt")
    with pytest.raises(ModelFileError, match=says) as caught:
        load_backbone("ViT-B-32", f"openai={tmp_path / 'w.pt'}")
    assert str(tmp_path / "w.pt") in caught.value.message
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [0, 1, 9, 100, 5000])
@pytest.mark.parametrize("suffix", ["pt", "safetensors", "npz"])
def test_a_torn_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int, suffix: str) -> None:
    shrink(monkeypatch)
    file = tmp_path / f"w.{suffix}"
    torch.save(weights(), file) if suffix == "pt" else save_file(weights(), file)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ModelFileError, match=rf"w\.{suffix}"):
        load_backbone("ViT-B-32", f"openai={file}")


def test_a_pipe_or_a_missing_file_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    os.mkfifo(tmp_path / "w.pt")
    for pretrained in (
        str(tmp_path / "w.pt"),
        f"openai={tmp_path / 'w.pt'}",
        "openai=absent.pt",
        "nonsense=w.pt",
    ):
        with pytest.raises(ConfigError):
            load_backbone("ViT-B-32", pretrained)
    with pytest.raises(ConfigError, match="neither a weights file nor a tag"):
        load_backbone("tiny", "absent.safetensors")  # not the built-in weights instead


def test_names_as_openai_spells_them_and_names_nearly_right() -> None:
    assert find_architecture("ViT-B/32").name == "ViT-B-32"
    assert find_architecture("ViT-L/14@336px").name == "ViT-L-14-336"
    with pytest.raises(ConfigError, match="Did you mean ViT-B-32"):
        find_architecture("ViT-B-23")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_cfg": 3}', '{"embed_dim": 3}'])
def test_a_configuration_file_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ConfigError, match=r"model\.json"):
        load_backbone(str(tmp_path / "model.json"), "none")


def test_a_configuration_cannot_name_a_timm_model_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_downloads(monkeypatch)
    config = {**CONFIG, "vision_cfg": {"timm_model_name": "hf-hub:someone/model", "image_size": 32}}
    (tmp_path / "model.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="installed timm does not have"):
        load_backbone(str(tmp_path / "model.json"), "none")


def test_the_files_that_a_digest_is_made_of_are_those_that_are_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("open_clip_model.safetensors", "own.safetensors"):
        shutil.copy(tiny.weights_path(), folder / name)
    (folder / "open_clip_config.json").write_text(json.dumps(tiny.tiny_config()))
    own = str(folder / "own.safetensors")
    for name, pretrained in [
        ("tiny", ""), ("tiny", "built-in"), ("tiny", "openai"), ("tiny", own), ("tiny", "none"),
        (f"local-dir:{folder}", ""), (f"local-dir:{folder}", "openai"), (f"local-dir:{folder}", "none"),
        ("ViT-B-32", "openai"), ("ViT-B-32", f"{GELU_TAG}={own}"),
    ]:  # fmt: skip
        found = find_weights(find_architecture(name), pretrained)
        assert local_weights(name, pretrained) == found.file, (name, pretrained)


def test_a_digest_changes_with_the_content_alone(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    config = folder / "open_clip_config.json"
    config.write_text(json.dumps(CONFIG))
    names = [
        (f"local-dir:{folder}", "own"),
        ("ViT-B-32", str(folder / "model.safetensors")),
        (str(config), "none"),
    ]

    def digests() -> list[str]:
        return [local_digest(*name) for name in names]

    first = digests()
    assert len(set(first)) == 2  # of the same files the same
    config.write_text(json.dumps(CONFIG | {"quick_gelu": True}))
    second = digests()
    assert all(one != other for one, other in zip(first, second, strict=True))
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    third = digests()
    assert [one == other for one, other in zip(second, third, strict=True)] == [False, False, True]
    moved = folder.rename(tmp_path / "moved")
    assert local_digest(f"local-dir:{moved}", "own") == third[0]
    assert local_digest("ViT-B-32", "openai") == local_digest("ViT-L-14", "openai")  # the tag says which


def test_files_are_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    Path("tiny.json").write_text(json.dumps(tiny.tiny_config()))
    shutil.copy(tiny.weights_path(), "w.safetensors")
    save_file(tiny.load_compact(), "model.safetensors")
    (tmp_path / "data" / "open_clip_config.json").write_text(json.dumps(tiny.tiny_config()))
    described = [
        load_backbone(name, pretrained).spec
        for name, pretrained in (
            ("tiny", "w.safetensors"),
            ("tiny.json", "model.safetensors"),
            ("local-dir:.", "own"),
        )
    ]
    tagged = find_weights(find_architecture("ViT-B-32"), f"{GELU_TAG}=w.safetensors").pretrained
    monkeypatch.chdir(tmp_path)
    assert Path(tagged.partition("=")[2]).is_file()
    assert len({reload_backbone(spec).fingerprint() for spec in described}) == 1
