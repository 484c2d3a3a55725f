"""Which models an index belongs to, and that what it gives is what the images give."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import refiner_cli
from refiner_cli.config import method_section
from refiner_cli.core.model_io.zero_shot import zero_shot_model
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.calibration import Calibration, Confidence, Temperatures
from refiner_cli.core.models.hubness import HubnessCorrection
from refiner_cli.core.models.registry import build_model
from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import UsageError
from refiner_cli.inference.decoding import want_all
from refiner_cli.inference.encoded import EncodedBenchmark
from refiner_cli.inference.fingerprints import score_fingerprint, vector_fingerprint
from refiner_cli.inference.index import Index
from refiner_cli.inference.indexing import check_made_by, index_images, open_for_writing, predict_index
from refiner_cli.inference.predict import predict_files
from refiner_cli.inference.recogniser import Recogniser
from refiner_cli.inference.scan import ImageFile

PAIRS = [("burnt", "apple"), ("wet", "pear")]
SPACE = LabelSpace.from_pairs(PAIRS, PAIRS)
OTHER = Calibration(
    state_weight=0.4, bias=-3.0, hubness_strength=1.0, wise_ft_alpha=0.25,
    closed=Confidence(Temperatures(2.0, 1.5, 0.5)),
)  # fmt: skip


@pytest.fixture
def recogniser(small_export: Path) -> Recogniser:
    return refiner_cli.load(small_export)


@pytest.fixture
def images(small_demo: Path) -> list[ImageFile]:
    return [ImageFile(path, path.name) for path in list(load_benchmark(small_demo).paths("test"))[:4]]


@pytest.fixture
def index(recogniser: Recogniser, images: list[ImageFile], tmp_path: Path) -> Index:
    made = open_for_writing(tmp_path / "index", recogniser, "m", "refiner", ["photos"], 3)
    with made.locked():
        index_images(recogniser, made, images, batch=4, workers=0, log=lambda _: None)
    return Index.open(made.folder)


def calibrated_again(recogniser: Recogniser, calibration: Calibration) -> Recogniser:
    model = recogniser.model
    model.calibration = calibration
    model.hubness = HubnessCorrection(3, model.backbone.embed_dim)
    with torch.no_grad():
        model.hubness.centres.normal_(generator=torch.Generator().manual_seed(0))
    return Recogniser(model)


def test_a_model_that_is_calibrated_again_predicts_from_its_index_what_it_predicts_from_the_images(
    recogniser: Recogniser, index: Index, images: list[ImageFile]
) -> None:
    before = list(predict_index(recogniser, index, want_all, 5, 4))
    views = recogniser.model.calibration.tta_shifts
    changed = calibrated_again(recogniser, dataclasses.replace(OTHER, tta_shifts=views))
    check_made_by(index, changed)
    kept = list(predict_index(changed, index, want_all, 5, 4))
    direct = list(predict_files(changed, images, top_k=5, batch=4, workers=0))
    for one, other, old in zip(kept, direct, before, strict=True):
        assert one.prediction
        assert other.prediction
        assert old.prediction
        for first, second in zip(one.prediction.compositions, other.prediction.compositions, strict=True):
            assert first.score == pytest.approx(second.score, abs=0.02)
            assert first.probability == pytest.approx(second.probability, abs=0.01)
        assert one.prediction.compositions[0].score != pytest.approx(
            old.prediction.compositions[0].score, abs=0.1
        )


def test_another_number_of_views_or_other_weights_need_another_index(
    recogniser: Recogniser, index: Index
) -> None:
    views = recogniser.model.calibration.tta_shifts
    other = 2 if views == 1 else 1
    changed = calibrated_again(recogniser, dataclasses.replace(OTHER, tta_shifts=other))
    with pytest.raises(UsageError, match=f"of {views} shifted views .* model takes {other}"):
        check_made_by(index, changed)
    recogniser.model.calibration = dataclasses.replace(OTHER, tta_shifts=views)
    with torch.no_grad():
        next(iter(recogniser.model.trainable_parameters().values())).add_(1)
    with pytest.raises(UsageError, match="was made with another model"):
        check_made_by(index, recogniser)


def test_an_index_of_an_earlier_version_belongs_to_the_calibration_it_was_made_with(
    recogniser: Recogniser, index: Index
) -> None:
    del index.info.model["vectors"]
    index.info.model["model"] = score_fingerprint(recogniser.model)
    check_made_by(index, recogniser)
    views = recogniser.model.calibration.tta_shifts
    with pytest.raises(UsageError, match="was made with another model"):
        check_made_by(index, calibrated_again(recogniser, dataclasses.replace(OTHER, tta_shifts=views)))


def test_a_method_that_reads_patches_has_no_index(tmp_path: Path) -> None:
    clip, _ = zero_shot_model("tiny", SPACE)
    model = build_model("troika", clip.backbone, method_section("troika")(), SPACE)
    with pytest.raises(UsageError, match="scores against the patches"):
        open_for_writing(tmp_path / "index", Recogniser(model), "m", "troika", ["photos"])
    assert not (tmp_path / "index").exists()


def test_the_same_weights_with_another_activation_are_another_model() -> None:
    clip, _ = zero_shot_model("tiny", SPACE)
    spec = clip.backbone.spec
    other = dataclasses.replace(spec, model={**spec.model, "quick_gelu": not spec.model.get("quick_gelu")})
    before = score_fingerprint(clip), vector_fingerprint(clip)
    clip.backbone = dataclasses.replace(clip.backbone, spec=other)
    after = score_fingerprint(clip), vector_fingerprint(clip)
    assert all(one != two for one, two in zip(before, after, strict=True))
    benchmark = EncodedBenchmark(
        "", Path(), {}, {}, backbone=Recogniser(clip).model.backbone.use_fingerprint()
    )
    benchmark.check_usable_by(clip, "clip")
    clip.backbone = dataclasses.replace(clip.backbone, spec=spec)
    with pytest.raises(UsageError, match="another backbone"):
        benchmark.check_usable_by(clip, "clip")


def test_methods_above_the_frozen_backbone_share_an_index() -> None:
    clip, _ = zero_shot_model("tiny", SPACE)
    models: dict[str, Model] = {
        name: build_model(name, clip.backbone, method_section(name)(), SPACE)
        for name in ("csp", "coop", "refiner")
    }
    same = {name for name, model in models.items() if vector_fingerprint(model) == vector_fingerprint(clip)}
    assert same == {"csp", "coop"}
