"""Test never chooses anything: neither its labels nor its images are read while something is chosen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refiner_cli.config import CalibrationConfig
from refiner_cli.core.model_io.checkpoint import read_model
from refiner_cli.core.models.base import Model
from refiner_cli.core.runtime.device import RuntimeOptions
from refiner_cli.data.benchmark import Benchmark, load_benchmark
from refiner_cli.errors import DatasetError
from refiner_cli.evaluation.evaluate import EvalOptions, evaluate_model
from refiner_cli.evaluation.feasibility.feasibility import text_tower_similarity
from refiner_cli.evaluation.feasibility.fit import fit_feasibility
from refiner_cli.evaluation.result import Result
from refiner_cli.evaluation.scoring import (
    check_same_labels,
    image_batches,
)
from refiner_cli.training.calibrate import calibrate, fit_hubness, spread_rows
from refiner_cli.training.run_dir import model_folder


class Sealed(dict[Any, Any]):
    """The samples of a benchmark whose test split must not be touched."""

    def __getitem__(self, split: Any) -> Any:
        assert split != "test", "the test split was read"
        return super().__getitem__(split)


@pytest.fixture(scope="module")
def model(small_run: Path) -> Model:
    return read_model(model_folder(small_run))[0]


@pytest.fixture(scope="module")
def demo(small_demo: Path) -> Benchmark:
    return load_benchmark(small_demo)


def sealed(demo: Benchmark) -> Benchmark:
    return dataclasses.replace(demo, samples=Sealed(demo.samples))


def shuffled(demo: Benchmark) -> Benchmark:
    """The same test images, every one with the next one's label."""
    test = demo.samples["test"]
    labels = [sample.pair for sample in (*test[1:], test[0])]
    moved = tuple(dataclasses.replace(s, pair=pair) for s, pair in zip(test, labels, strict=True))
    return dataclasses.replace(demo, samples={**demo.samples, "test": moved})


def test_calibration_reads_no_test_image(model: Model, demo: Benchmark) -> None:
    settings = CalibrationConfig()
    blind = calibrate(model, sealed(demo), settings, RuntimeOptions())
    assert blind == calibrate(model, shuffled(demo), settings, RuntimeOptions())


def test_centres_are_those_of_training_images_alone(small_run: Path, demo: Benchmark) -> None:
    model = read_model(model_folder(small_run))[0]
    assert model.hubness is not None
    before = model.hubness.centres.clone()
    only = dataclasses.replace(demo, samples={"train": demo.samples["train"]})
    fit_hubness(model, only, RuntimeOptions(batch_size=3))
    assert torch.allclose(model.hubness.centres, before, atol=1e-6)  # as training left them
    space = demo.label_space("train").training()
    for index, pair in enumerate(space.pairs[:3]):
        rows = [i for i, sample in enumerate(demo.samples["train"]) if sample.pair == pair]
        with torch.no_grad():
            (batch,) = image_batches(
                model, demo, "train", RuntimeOptions(), spread_rows(np.array(rows)).tolist()
            )
            want = model.encode_images(batch.images).composition.mean(0)
        assert torch.allclose(model.hubness.centres[index], want, atol=1e-6)


@pytest.mark.parametrize("protocol", ["exact", "legacy"])
@pytest.mark.parametrize("kind", ["mask", "soft"])
def test_feasibility_reads_no_test_image(model: Model, demo: Benchmark, kind: Any, protocol: Any) -> None:
    similarity = text_tower_similarity(model.backbone, demo.vocabulary)
    _, choice = fit_feasibility(model, sealed(demo), kind, similarity, RuntimeOptions(), protocol=protocol)
    assert choice is not None
    assert choice.val_auc == max(auc for _, auc in choice.candidates)
    assert choice.value == next(value for value, auc in choice.candidates if auc == choice.val_auc)


def test_other_test_labels_change_results_but_no_choice(model: Model, demo: Benchmark) -> None:
    def assess(benchmark: Benchmark) -> Result:
        return evaluate_model(
            model,
            benchmark,
            "test",
            ["closed", "open"],
            RuntimeOptions(),
            EvalOptions(bootstrap_samples=2),
            feasibility="soft",
        )

    right, wrong = assess(demo).worlds, assess(shuffled(demo)).worlds
    for world in ("closed", "open"):
        assert right[world].feasibility == wrong[world].feasibility
        assert right[world].bias == wrong[world].bias
        assert (right[world].measured.summary.best_unseen == wrong[world].measured.summary.best_unseen).all()
        assert right[world].metrics != wrong[world].metrics
    assert right["open"].feasibility is not None
    assert right["closed"].feasibility is None


def test_soft_with_lambda_zero_is_no_prior(model: Model, demo: Benchmark) -> None:
    similarity = text_tower_similarity(model.backbone, demo.vocabulary)
    _, soft = fit_feasibility(model, demo, "soft", similarity, RuntimeOptions())
    plain = evaluate_model(model, demo, "val", ["open"], RuntimeOptions(), EvalOptions(bootstrap_samples=2))
    assert soft is not None
    assert soft.candidates[0] == (0.0, plain.worlds["open"].metrics.AUC)


def test_other_labels_are_named(model: Model, demo: Benchmark) -> None:
    check_same_labels(model.space, demo)
    train = tuple(pair for pair in demo.pairs["train"] if pair != ("burnt", "apple"))
    other = dataclasses.replace(demo, pairs={**demo.pairs, "train": train})
    with pytest.raises(DatasetError, match="only the model has the training pair 'burnt apple'"):
        check_same_labels(model.space, other)
    more = dataclasses.replace(demo, pairs={**demo.pairs, "test": (*demo.pairs["test"], ("odd", "apple"))})
    with pytest.raises(DatasetError, match="only the dataset has the state 'odd'"):
        check_same_labels(model.space, more)
