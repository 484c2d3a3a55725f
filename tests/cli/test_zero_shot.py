"""A backbone by name wherever a MODEL is taken: CLIP zero-shot, without training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from refiner_cli.core.model_io.zero_shot import backbone_text, default_tag, is_backbone_name, split_name
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.data.images import Preprocess, decode
from refiner_cli.errors import ConfigError
from tests.conftest import Cli, parse_rows


@pytest.fixture
def words(tmp_path: Path) -> tuple[Path, Path]:
    states, objects = tmp_path / "states.txt", tmp_path / "objects.txt"
    states.write_text("burnt\nwet\n")
    objects.write_text("apple\ncarrot\nhat\n")
    return states, objects


@pytest.mark.parametrize(
    "name", ["tiny", "ViT-L-14", "ViT-L-14:openai", "ViT-B/32", "hf-hub:a/b", "local-dir:x"]
)
def test_backbones_are_told_from_folders(name: str) -> None:
    assert is_backbone_name(name)


@pytest.mark.parametrize("name", ["runs/mit", "ViT-Q-99", "nothing"])
def test_other_names_are_no_backbones(name: str) -> None:
    assert not is_backbone_name(name)


def test_the_tag_that_is_meant_is_openais_or_the_only_one() -> None:
    assert default_tag("ViT-L-14") == default_tag("ViT-B/32") == "openai"
    with pytest.raises(ConfigError, match=r"ViT-H-14 has weights under several tags .* Name one: ViT-H-14:"):
        default_tag("ViT-H-14")


def test_prediction_needs_no_training(
    cli: Cli, small_demo: Path, words: tuple[Path, Path], tmp_path: Path
) -> None:
    states, objects = words
    out = tmp_path / "rows.jsonl"
    done = cli("predict", "tiny", small_demo / "images", "--states", states, "--objects", objects, "-o", out)
    assert done.code == 0, done.err
    rows = parse_rows(out.read_text())
    backbone = load_backbone("tiny", "")
    text = torch.nn.functional.normalize(
        backbone.text.encode_texts(
            [f"a photo of {s} {o}" for s in ("burnt", "wet") for o in ("apple", "carrot", "hat")]
        ),
        dim=-1,
    )
    for row in rows[:: len(rows) // 3]:
        image = Preprocess(backbone.spec.preprocess)(decode(small_demo / "images" / row["path"]))
        with torch.no_grad():
            vector = torch.nn.functional.normalize(backbone.clip.encode_image(image[None]), dim=-1)
        want = (backbone.logit_scale * vector @ text.T).double().softmax(-1)[0]
        best = row["predictions"][0]
        assert best["probability"] == pytest.approx(want.max().item(), abs=1e-4)
        assert best["seen"] is False


def test_evaluation_takes_the_labels_of_the_dataset(cli: Cli, small_demo: Path) -> None:
    done = cli("eval", "tiny", "--dataset", small_demo, "--json", "--bootstrap-samples", "2")
    assert done.code == 0, done.err
    assert set(done.json["worlds"]) == {"closed", "open"}


def test_info_describes_a_backbone_without_loading_it(cli: Cli) -> None:
    assert cli("info", "ViT-L-14:openai", "--json").json["image_size"] == 224
    unknown = cli("info", "ViT-L-14:nothing")
    assert (unknown.code, "'nothing' is neither a weights file nor a tag of ViT-L-14" in unknown.err) == (
        3,
        True,
    )


def test_export_makes_a_model_of_it_that_still_needs_a_vocabulary(
    cli: Cli, small_demo: Path, words: tuple[Path, Path], tmp_path: Path
) -> None:
    assert cli("export", "tiny", tmp_path / "model").code == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Nothing was measured on a validation split." in card
    assert "were not chosen on any image" in card
    photos, (states, objects) = small_demo / "images", words
    refused = cli("predict", tmp_path / "model", photos)
    assert refused.code == 2
    assert "--states FILE and --objects FILE" in refused.err
    done = cli("predict", tmp_path / "model", photos, "--states", states, "--objects", objects)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "knows no states and objects"),
        (["--states", "STATES"], "needs both --states and --objects"),
    ],
)
def test_without_a_vocabulary_prediction_is_refused(
    cli: Cli, small_demo: Path, words: tuple[Path, Path], more: list[str], says: str
) -> None:
    given = [words[0] if text == "STATES" else text for text in more]
    done = cli("predict", "tiny", small_demo / "images", *given)
    assert done.code == 2
    assert says in done.err


def test_without_a_dataset_evaluation_is_refused(cli: Cli) -> None:
    done = cli("eval", "tiny")
    assert done.code == 2
    assert "needs --dataset" in done.err


@pytest.mark.parametrize(
    ("name", "pretrained", "text"),
    [
        ("tiny", "openai", "tiny"),
        ("tiny", "none", "tiny:none"),
        ("ViT-L-14", "openai", "ViT-L-14:openai"),
        ("ViT-B-32", "openai=/w/clip.pt", "ViT-B-32:openai=/w/clip.pt"),
        ("hf-hub:some/model", "own", "hf-hub:some/model"),
    ],
)
def test_a_backbone_is_shown_as_it_is_typed(name: str, pretrained: str, text: str) -> None:
    assert backbone_text(name, pretrained) == text
    assert is_backbone_name(text)
    tag = pretrained if ":" in text and not text.startswith("hf-hub:") else ""
    assert split_name(text) == (name, tag)
