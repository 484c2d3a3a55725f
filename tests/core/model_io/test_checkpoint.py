"""Model directories: what is written is read back, and damage is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from refiner_cli.config import CalibrationConfig, method_section
from refiner_cli.core.model_io.card import UNKNOWN_LICENCE, licence_of_backbone
from refiner_cli.core.model_io.checkpoint import (
    MODEL_FORMAT,
    ModelInfo,
    load_saved_tensors,
    read_model,
    write_model,
)
from refiner_cli.core.model_io.export import export_model
from refiner_cli.core.model_io.onnx_files import is_onnx
from refiner_cli.core.model_io.stored_json import read_json, write_stored
from refiner_cli.core.models.baselines.clip import Clip
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.device import PRECISIONS
from refiner_cli.core.towers.backbone import Backbone, BackboneSpec, load_backbone
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import ModelFileError, RefinerError
from refiner_cli.training.run_dir import model_folder
from tests.core.cases import SPACE


def test_an_export_and_its_run_hold_the_same_model(small_run: Path, small_export: Path) -> None:
    ours, _ = read_model(model_folder(small_run))
    theirs, _ = read_model(small_export)
    assert ours.saved_tensors().keys() == theirs.saved_tensors().keys()
    assert all(torch.equal(p, theirs.saved_tensors()[name]) for name, p in ours.saved_tensors().items())
    assert ours.saved_tensors()["hubness.centres"].any(1).all()  # measured for every seen pair
    assert ours.backbone.fingerprint() == theirs.backbone.fingerprint()
    assert (ours.space, ours.calibration) == (theirs.space, theirs.calibration)


class Normalised(Clip):
    """A method of another package with batch normalisation and a frozen projection."""

    def __init__(self, backbone: Backbone, config: Any, space: LabelSpace) -> None:
        super().__init__(backbone, config, space)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("projection", torch.zeros(2, 3))


def test_running_statistics_of_any_method_are_stored() -> None:
    backbone, settings = load_backbone("tiny", "built-in"), method_section("clip")()
    ours, theirs = (Normalised(backbone, settings, SPACE) for _ in range(2))
    ours.norm(torch.randn(8, 3))
    ours.projection.fill_(2)
    load_saved_tensors(theirs, {k: v.clone() for k, v in ours.saved_tensors().items()}, Path("file"))
    stored = theirs.state_dict()
    for name in ("norm.running_mean", "norm.running_var", "norm.weight", "projection"):
        assert torch.equal(stored[name], ours.state_dict()[name])
    assert stored["norm.running_mean"].any()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_rounds_no_single_number(tmp_path: Path, dtype: str) -> None:
    backbone = load_backbone("tiny", "built-in")
    model = build_model("csp", backbone, method_section("csp")(), SPACE).eval()
    with torch.no_grad():
        model.clip.logit_scale.fill_(4.5966)  # in bf16 4.59375: a scale of 98.9 instead of 99.1
    export_model(tmp_path / "model", model, ModelInfo("csp", "none", "", "", 1, {}), dtype=dtype,
                 with_backbone=True)  # fmt: skip
    stored = load_file(tmp_path / "model" / "model.safetensors")
    kinds = {value.dtype for value in stored.values() if value.is_floating_point() and value.numel() > 1}
    assert kinds == {PRECISIONS[dtype]}
    again, _ = read_model(tmp_path / "model")
    assert again.backbone.logit_scale == backbone.logit_scale


def test_settings_that_training_takes_are_read_back(tmp_path: Path) -> None:
    settings = method_section("refiner").model_validate({"adapter_blocks": 999, "queries_per_role": 1})
    model = build_model("refiner", load_backbone("tiny", "built-in"), settings, SPACE).eval()
    softness = 1e-3
    with pytest.raises(ValidationError):
        CalibrationConfig(hubness_softness=(softness * 0.99,))
    (lowest,) = CalibrationConfig(hubness_softness=(softness,)).hubness_softness
    model.calibration = Calibration(hubness_softness=lowest)
    write_model(tmp_path, model, ModelInfo("refiner", "none", "", "", 1, {}), with_backbone=False)
    again, _ = read_model(tmp_path)
    assert (again.config, again.calibration) == (model.config, model.calibration)


def test_a_metric_that_is_no_number_is_read_back_as_undefined(tmp_path: Path) -> None:
    model = build_model("clip", load_backbone("tiny", "built-in"), method_section("clip")(), SPACE).eval()
    metrics = {"AUC": float("nan"), "HM": float("inf"), "S": 1.5, "U": None}
    write_model(tmp_path, model, ModelInfo("clip", "none", "", "", 1, metrics), with_backbone=False)
    assert read_model(tmp_path)[1].metrics == {"AUC": None, "HM": None, "S": 1.5, "U": None}


def test_labels_take_little_room_and_the_rest_a_line_each(tmp_path: Path) -> None:
    pairs = [[f"state {number}", "grün \n apple"] for number in range(1000)]
    content = {"format": "x", "empty": {}, "path": "\udcff", "model": {"a": [1, {"b": None}]},
               "labels": {"pairs": pairs}}  # fmt: skip
    file = tmp_path / "config.json"
    write_stored(file, content)
    assert read_json(file) == content
    lines = file.read_text("utf-8").splitlines()
    assert len(lines) == len(json.dumps({**content, "labels": 0}, indent=2).splitlines())
    assert file.stat().st_size < len(json.dumps(pairs).encode()) + 500


def test_a_model_of_an_earlier_version_has_one_bias_for_both_worlds(
    small_export: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(small_export, tmp_path / "model"))
    config = json.loads((copy / "config.json").read_text())
    wide = config["calibration"].pop("open_bias")
    (copy / "config.json").write_text(json.dumps(config))
    earlier, present = (read_model(folder)[0].calibration for folder in (copy, small_export))
    assert earlier.bias == present.bias != wide
    assert [one.bias_of(is_open=True) for one in (earlier, present)] == [earlier.bias, wide]
    assert [one.bias_of(is_open=False) for one in (earlier, present)] == [earlier.bias] * 2
    # It is written as it was, so that fingerprints stay.
    assert json.dumps(earlier.to_json()) == json.dumps(config["calibration"])


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def cut_config(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text()[:-100])


def drop_labels(folder: Path) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    del config["labels"]
    file.write_text(json.dumps(config))


def other_width(folder: Path) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["model"]["adapter_dim"] = 32
    file.write_text(json.dumps(config))


def other_format(folder: Path) -> None:
    (folder / "config.json").write_text('{"format": "refiner.model/9"}')


def other_program(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "clip"}')


def no_object(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut_weights, "model.safetensors are damaged or cut short"),
        (remove_weights, "the file model.safetensors is missing"),
        (remove_config, "the file config.json is missing"),
        (cut_config, "config.json cannot be read"),
        (drop_labels, "incomplete or damaged"),
        (other_width, "has a different shape"),
        (other_format, "reads 'refiner.model/3'. A newer version may have written it: update refiner."),
        (other_program, "is not the configuration of a model of refiner: it states no format."),
        (no_object, "is not the configuration of a model of refiner: it states no format."),
    ],
)
def test_damage_is_named(
    tmp_path: Path, small_export: Path, damage: Callable[[Path], None], says: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(small_export, folder)
    damage(folder)
    with pytest.raises(ModelFileError) as raised:
        read_model(folder)
    assert says in str(raised.value)


def test_a_rounded_model_without_its_backbone_takes_the_one_it_was_trained_on(
    tmp_path: Path, small_export: Path
) -> None:
    exact, info = read_model(small_export)
    export_model(tmp_path / "rounded", exact, info, dtype="bf16", with_backbone=True)
    rounded, _ = read_model(tmp_path / "rounded")
    assert rounded.backbone.fingerprint() != exact.backbone.fingerprint()
    export_model(tmp_path / "small", rounded, info, dtype="fp32", with_backbone=False)
    small, _ = read_model(tmp_path / "small")
    assert small.backbone.fingerprint() == exact.backbone.fingerprint()


def test_a_graph_of_an_earlier_export_does_not_make_a_model_another_one(
    tmp_path: Path, small_export: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(small_export, folder)
    (folder / "image.onnx").write_bytes(b"stays in a repository of the Hub")
    assert not is_onnx(folder)


@pytest.mark.parametrize(
    ("pretrained", "licence"),
    [("openai", "MIT"), ("openai=own.pt", "MIT"), ("openai.pt", UNKNOWN_LICENCE), ("own", UNKNOWN_LICENCE)],
)
def test_a_licence_is_that_of_published_weights(pretrained: str, licence: str) -> None:
    assert licence_of_backbone(BackboneSpec("ViT-B-32", pretrained, {}, {})) == licence


def test_a_backbone_that_changed_is_refused(tmp_path: Path, small_run: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder(small_run), folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["backbone"]["fingerprint"] = "0" * 16
    file.write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match="is not the one"):
        read_model(folder)


def test_a_run_without_validation_is_no_model_yet(tmp_path: Path, small_run: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    (folder / "best.json").unlink()
    with pytest.raises(RefinerError, match="no validated checkpoint"):
        model_folder(folder)


@pytest.mark.parametrize("earlier", ["refiner.model/1", "refiner.model/2"])
def test_a_refiner_of_an_earlier_design_is_refused_with_a_way_out(
    tmp_path: Path, small_export: Path, earlier: str
) -> None:
    shutil.copytree(small_export, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(file.read_text().replace(MODEL_FORMAT, earlier))
    with pytest.raises(ModelFileError, match="a Refiner of an earlier design") as raised:
        read_model(tmp_path / "model")
    assert "Train it again" in str(raised.value.hint)


def test_a_baseline_of_the_first_format_predicts_as_before(tmp_path: Path) -> None:
    model = build_model("csp", load_backbone("tiny", "built-in"), method_section("csp")(), SPACE).eval()
    info = ModelInfo("csp", "none", "", "", 1, {})
    export_model(tmp_path / "model", model, info, dtype="fp32", with_backbone=True)
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    settings = config["model"]
    settings["word_dropout"] = settings.pop("primitive_dropout")
    file.write_text(json.dumps({**config, "format": "refiner.model/1", "model": settings}))
    weights = tmp_path / "model" / "model.safetensors"
    old = {name.replace("trained.", "learned."): value for name, value in load_file(weights).items()}
    save_file(old, weights)
    again, _ = read_model(tmp_path / "model")
    with torch.no_grad():
        ours, theirs = (m.encode_pairs(SPACE).pairs for m in (model, again))
    assert torch.equal(ours, theirs)
