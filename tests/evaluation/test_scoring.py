from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from refiner_cli.core.model_io.checkpoint import read_model
from refiner_cli.core.models.base import Model
from refiner_cli.core.runtime.device import RuntimeOptions
from refiner_cli.data.benchmark import Benchmark, load_benchmark
from refiner_cli.errors import DatasetError
from refiner_cli.evaluation.evaluate import EvalOptions, evaluate_model
from refiner_cli.evaluation.scoring import measure_split
from refiner_cli.training.run_dir import model_folder


@pytest.fixture
def model(small_run: Path) -> Model:
    return read_model(model_folder(small_run))[0]


@pytest.fixture(scope="module")
def demo(small_demo: Path) -> Benchmark:
    return load_benchmark(small_demo)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("broken", [True, False])
def test_evaluation_leaves_the_model_as_it_was(
    model: Model, demo: Benchmark, training: bool, broken: bool
) -> None:
    model.train(training)
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calibration = model.calibration

    def progress(_done: int, _total: int) -> None:
        if broken:
            raise KeyboardInterrupt

    spaces = {"closed": demo.label_space("test")}
    try:
        measure_split(model, demo, "test", spaces, RuntimeOptions(), progress=progress)
    except KeyboardInterrupt:
        assert broken
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(tensor.equal(weights[name]) for name, tensor in model.state_dict().items())
    assert model.calibration == calibration


@pytest.mark.parametrize("mode", ["mask", "soft"])
@pytest.mark.parametrize("side", ["seen", "unseen"])
def test_feasibility_cannot_be_chosen_without_images_on_both_sides(
    model: Model, demo: Benchmark, mode: str, side: str
) -> None:
    train = set(demo.pairs["train"])
    kept = tuple(s for s in demo.samples["val"] if (s.pair in train) != (side == "seen"))
    lacking = dataclasses.replace(demo, samples={**demo.samples, "val": kept})
    with pytest.raises(DatasetError, match=f"no image of {side} pairs"):
        evaluate_model(
            model, lacking, "test", ["open"], RuntimeOptions(), EvalOptions(bootstrap_samples=2),
            feasibility=mode,
        )  # fmt: skip
