"""Model folders with changed values: read with sensible results, or refused with one sentence."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from refiner_cli.config import method_section
from refiner_cli.core.model_io.checkpoint import ModelInfo, read_model, write_model
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.data.images import Preprocess
from refiner_cli.errors import ModelFileError, RefinerError
from tests.core.cases import SPACE

CASES = 400
SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 600, "width": 16, "heads": 2, "layers": 1},
}
PARTS = ("trained.", "clip.")
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 7, 10**9, 10**30, 1e30, -1e30, 0.5, 1e-30, float("nan"), float("inf"),
    "", "x", "hf-hub:evil/model", "local-dir:/nowhere", "http://127.0.0.1/x", "../x", "a" * 100_000, [], [1],
    [0, 0, 0], [1e30] * 3, {}, {"a": 1}, [[]], "NaN", "\x00", "timm/vit",
]  # fmt: skip


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few thousand numbers, with its backbone."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "small.json").write_text(json.dumps(SMALL))
    backbone = load_backbone(str(folder / "small.json"), "none")
    section = method_section("refiner")
    settings = section.model_validate({"adapter_dim": 4, "adapter_blocks": 1, "queries_per_role": 1})
    model = build_model("refiner", backbone, settings, SPACE)
    metrics = {"S": 1.0, "U": None, "HM": None, "AUC": None}
    (folder / "model").mkdir()
    info = ModelInfo("refiner", "demo", "data", "0" * 16, 3, metrics)
    write_model(folder / "model", model, info, with_backbone=True)
    return folder / "model"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was contacted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def change(config: Any, chance: random.Random) -> tuple[Any, ...]:
    """Set, remove or add one value."""
    path = chance.choice(list(places(config)))
    owner = config
    for key in path[:-1]:
        owner = owner[key]
    kind = chance.choice(["set", "set", "set", "set", "remove", "add"])
    if kind == "remove":
        del owner[path[-1]]
    elif kind == "add" and isinstance(owner, dict):
        keys = [
            "timm_model_name",
            "hf_model_name",
            "hf_tokenizer_name",
            "attentional_pool",
            "layers",
            "extra",
        ]
        owner[chance.choice(keys)] = chance.choice(VALUES)
    else:
        owner[path[-1]] = chance.choice(VALUES)
    return path


def scores_of(folder: Path) -> torch.Tensor:
    model, _ = read_model(folder)
    with torch.no_grad():
        pixels = Preprocess(model.backbone.spec.preprocess)(Image.new("RGB", (40, 30), (200, 10, 10)))
        bank = model.encode_pairs(model.space)
        return model.combine(model.score(model.encode_images_tta(pixels[None]), bank), model.space)


def test_changed_values_give_sensible_scores_or_one_sentence(pristine: Path, tmp_path: Path) -> None:
    original = json.loads((pristine / "config.json").read_text())
    folder = tmp_path / "model"
    shutil.copytree(pristine, folder)
    assert scores_of(folder).isfinite().all()
    refused = []
    for case in range(CASES):
        chance, config = random.Random(case), json.loads(json.dumps(original))
        paths = [change(config, chance) for _ in range(chance.choice([1, 1, 1, 2]))]
        (folder / "config.json").write_text(json.dumps(config))
        try:
            scores = scores_of(folder)
        except RefinerError as error:
            refused.append((paths, error))
        except Exception as error:
            raise AssertionError(f"case {case}: {paths}") from error
        else:
            assert scores.isfinite().all(), (case, paths)
    assert len(refused) > CASES / 2
    assert {error.exit_code for _, error in refused} == {3}
    assert not [str(error) for _, error in refused if "\n" in str(error) or len(str(error)) > 1_000]


def write_config(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(text) and None


def rewrite(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def cast(dtype: torch.dtype, prefix: str) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(tensors) if name.startswith(prefix))
        tensors[name] = tensors[name].to(dtype)

    return rewrite(change)


def fill(value: float, prefix: str) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[next(name for name in sorted(tensors) if name.startswith(prefix))].view(-1)[0] = value

    return rewrite(change)


def make_fifo(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *(cast(dtype, part) for dtype in (torch.int32, torch.bool, torch.complex64) for part in PARTS),
        *(fill(value, part) for value in (float("nan"), float("inf")) for part in PARTS),
        rewrite(lambda tensors: tensors["clip.logit_scale"].fill_(1e4)),
        rewrite(lambda tensors: tensors.pop("clip.logit_scale")),
        rewrite(lambda tensors: tensors.update(other=torch.zeros(1))),
        rewrite(lambda tensors: tensors.clear()),
        make_fifo("model.safetensors"),
        make_fifo("config.json"),
        write_config("[" * 100_000),
        write_config('{"a":' * 100_000),
        write_config("[1]"),
        write_config('"text"'),
        write_config(""),
        write_config("1e400"),
        write_config('{"format": {"a": 1}}'),
        write_config('{"format": "refiner.model/1"}'),
        write_config('{"format": "refiner.model/3"}'),
        write_config("1" * 10_000),
    ],
)  # fmt: skip
def test_damaged_files_are_one_sentence(
    pristine: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(pristine, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(ModelFileError) as raised:
        read_model(tmp_path / "model")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("preprocess.std", [-1, 1, 1]),
        ("preprocess.std", [0, 1, 1]),
        ("model.vision_cfg.head_width", True),
        ("model.vision_cfg.patch_size", 0),
        ("model.vision_cfg.width", 10**30),
        ("model.vision_cfg.layers", 10**6),
        ("model.vision_cfg.timm_model_name", "hf-hub:timm/vit_base_patch16_224"),
        ("model.vision_cfg.timm_model_pretrained", True),
        ("model.text_cfg.vocab_size", 10**9),
        ("seed", -1),
        ("included", "yes"),
        ("included", 1),
    ],
)
def test_an_impossible_value_is_named(pristine: Path, tmp_path: Path, key: str, value: object) -> None:
    shutil.copytree(pristine, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    *sections, leaf = key.split(".")
    owner = config["backbone"]
    for section in sections:
        owner = owner[section]
    owner[leaf] = value
    file.write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match=rf"config\.json is incomplete or damaged: backbone\.{key}"):
        read_model(tmp_path / "model")


@pytest.mark.parametrize("name", ["hf-hub:evil/model", "ViT-B-32"])
def test_a_folder_that_names_another_backbone_contacts_nobody(
    pristine: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(pristine, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["backbone"] |= {"included": False, "name": name, "pretrained": "openai"}
    file.write_text(json.dumps(config))
    with pytest.raises(RefinerError):
        read_model(tmp_path / "model")


def test_a_model_has_ordinary_permissions(pristine: Path) -> None:
    before = os.umask(0)
    os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in pristine.iterdir()}
    assert modes == dict.fromkeys(("config.json", "model.safetensors"), 0o666 & ~before)
