"""Cross-validated calibration: no image is measured by a model that learned from it."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from refiner_cli.config import CalibrationConfig, method_section
from refiner_cli.core.model_io.checkpoint import read_config, read_tensors
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.device import RuntimeOptions
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.data.benchmark import Benchmark, Sample, load_benchmark
from refiner_cli.data.labels import Pair
from refiner_cli.evaluation.metrics import confidence
from refiner_cli.evaluation.metrics.bias_sweep import sweep
from refiner_cli.evaluation.metrics.score_summary import ScoreSummary
from refiner_cli.evaluation.scoring import ProgressFn, no_progress
from refiner_cli.inference.encoded import EncodedBenchmark
from refiner_cli.training import candidates
from refiner_cli.training.calibrate import HeldOut, calibrate, measure_candidates
from refiner_cli.training.encoded_images import EncodedImages
from refiner_cli.training.run_dir import Run, model_folder
from refiner_cli.training.temperature import WORLDS, fit_confidence
from refiner_cli.training.trainer import StopRequestedError, Trainer
from refiner_cli.training.training_folds import training_folds
from tests.conftest import Cli
from tests.evaluation.cases import make_case
from tests.guide.examples import draw_photos

# Few candidates and no temperatures, to save time.
FEW = [
    "--set", "calibration.hubness_strength=0", "--set", "calibration.tta_shifts=1",
    "--set", "calibration.temperature=false",
]  # fmt: skip


def random_benchmark(seed: int) -> EncodedBenchmark:
    """Some pairs of five states and six objects with up to seven images, whose vectors are their numbers."""
    chance = random.Random(seed)
    every = [(state, obj) for state in "abcde" for obj in "uvwxyz"]
    pairs = sorted(chance.sample(every, chance.randint(1, 20)))
    counts = {pair: chance.choice([0, 1, 1, 2, 4, 7]) for pair in pairs}
    samples = [Sample(f"{pair}{i}.png", pair) for pair in pairs for i in range(counts[pair])]
    chance.shuffle(samples)
    vectors = torch.arange(len(samples), dtype=torch.float32)[:, None]
    return EncodedBenchmark(
        "random", Path("none"), {"train": tuple(pairs), "val": (), "test": (("f", "u"),)},
        {"train": tuple(samples), "val": (), "test": (Sample("f.png", ("f", "u")),)},
        {"train": vectors, "test": vectors[:1]},
    )  # fmt: skip


@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_image_is_held_out_and_every_label_is_still_learned(count: int) -> None:
    for seed in range(30):
        whole = random_benchmark(seed)
        train = whole.samples["train"]
        images = {pair: [one for one in train if one.pair == pair] for pair in whole.pairs["train"]}
        parts = training_folds(whole, count, seed)
        held = [set(part.samples["val"]) for part in parts]
        unseen: list[Pair] = []
        for part in parts:
            assert isinstance(part, EncodedBenchmark)
            assert sorted(map(str, part.samples["train"] + part.samples["val"])) == sorted(map(str, train))
            assert set(part.pairs["val"]) == set(whole.pairs["train"])
            assert not part.samples["test"]
            left = set(part.pairs["train"])
            assert {one.pair for one in part.samples["train"]} <= left
            assert left >= {pair for pair, found in images.items() if not found}
            gone = set(whole.pairs["train"]) - left
            assert all(set(images[pair]) <= set(part.samples["val"]) for pair in gone)
            assert all(set(images[pair]) - set(part.samples["val"]) for pair in left if images[pair])
            unseen += sorted(gone)
            for role in (0, 1):  # every state and object has an image to be learned from, if it had one
                learned = {one.pair[role] for one in part.samples["train"]}
                assert learned == {one.pair[role] for one in train}
            for split in ("train", "val"):
                numbers = [train.index(one) for one in part.samples[split]]  # type: ignore[index]
                assert part.vectors[split][:, 0].tolist() == numbers  # type: ignore[index]
        assert len(unseen) == len(set(unseen))
        for pair, found in images.items():
            if len(found) > 1 or pair in unseen:
                assert set(found) <= set[Sample]().union(*held)
        assert training_folds(whole, count, seed) is not parts


def test_pairs_are_held_out_where_they_can_be(small_demo: Path) -> None:
    demo = load_benchmark(small_demo)
    parts = training_folds(demo, 4, 0)
    sizes = [len(demo.pairs["train"]) - len(part.pairs["train"]) for part in parts]
    assert sum(sizes) == len(demo.pairs["train"])  # every label of the demo has many pairs
    assert max(sizes) - min(sizes) <= 1
    assert [part.samples for part in training_folds(demo, 4, 0)] == [part.samples for part in parts]
    assert training_folds(demo, 4, 1)[0].samples != parts[0].samples


def test_summaries_of_parts_are_one_summary() -> None:
    case = make_case(5, images=40)
    whole = case.summary()
    order = np.random.default_rng(0).permutation(len(whole))
    joined = ScoreSummary.join([whole.select(part) for part in np.array_split(order, 3)])
    for field in dataclasses.fields(ScoreSummary):
        assert np.array_equal(getattr(joined, field.name), getattr(whole.select(order), field.name))
    assert sweep(joined, case.space) == sweep(whole, case.space)


def test_held_out_images_count_as_a_validation_split(
    small_demo: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "COMPARISON_SAMPLES", 20)
    demo, options = load_benchmark(small_demo), RuntimeOptions(batch_size=50)
    settings = CalibrationConfig(tta_shifts=1, hubness_strength=(1.0, 0.0), hubness_softness=1)
    half = len(demo.samples["val"]) // 2

    def part(benchmark: Benchmark, chosen: slice) -> Benchmark:
        val = benchmark.samples["val"][chosen]
        return dataclasses.replace(benchmark, samples={**benchmark.samples, "val": val})

    model = build_model("clip", tiny, method_section("clip")(), demo.vocabulary).eval()
    wanted = calibrate(model, demo, settings, options)
    folds = [HeldOut(model, part(demo, slice(half))), HeldOut(model, part(demo, slice(half, None)))]
    other = build_model("clip", tiny, method_section("clip")(), demo.vocabulary).eval()
    found = calibrate(other, part(demo, slice(0)), settings, options, folds=folds)
    assert (wanted.calibration.chosen_on, found.calibration.chosen_on) == ("validation", "cross-validation")
    assert pytest.approx(wanted.metrics.AUC, abs=1e-3) == found.metrics.AUC
    assert found.criterion == "AUC"
    assert found.calibration.hubness_strength == wanted.calibration.hubness_strength
    assert found.calibration.bias == pytest.approx(wanted.calibration.bias, abs=1e-3)
    assert found.calibration.closed.temperatures.pair == pytest.approx(
        wanted.calibration.closed.temperatures.pair, rel=0.02
    )
    assert other.calibration == found.calibration
    assert (other.hubness is None) == (not found.calibration.hubness_strength)
    # What they say of validation: nothing.
    assert (found.validation.AUC, found.to_json()["val"]["after"]["AUC"]) == (None, None)
    assert found.to_json()["cross_validation"]["after"] == found.metrics.to_json()
    assert wanted.to_json()["val"]["after"] == wanted.metrics.to_json()
    assert "cross_validation" not in wanted.to_json()


def test_an_image_that_is_held_out_twice_counts_once(
    small_demo: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "COMPARISON_SAMPLES", 20)
    demo, options = load_benchmark(small_demo), RuntimeOptions(batch_size=50)
    model = build_model("clip", tiny, method_section("clip")(), demo.vocabulary).eval()
    part = EncodedImages(model, demo, "val", options, no_progress, [1])
    ((once,), (twice,)) = (measure_candidates([part] * times, [Calibration()], WORLDS) for times in (1, 2))
    assert len(twice.worlds[0][0].summary) == 2 * len(once.worlds[0][0].summary)
    assert twice.samples() == pytest.approx(once.samples())
    for criterion in ("AUC", "S"):
        found, wanted = (candidates.criterion_samples(one.worlds[0][0], criterion) for one in (twice, once))
        assert found == pytest.approx(wanted)
        assert np.ptp(wanted) > 0
    monkeypatch.setattr(confidence, "pair_correlation", lambda *_: 0.0)  # it would make up for some of it
    single, double = (fit_confidence(Calibration(), [part] * times).closed.promises for times in (1, 2))
    found = [[one.object.coverage + one.pair.coverage for one in promises] for promises in (single, double)]
    assert found[0] == pytest.approx(found[1])
    assert found[0][0] > 0


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vectors of twelve pairs, five images each, with labels beside them."""
    from refiner_cli.__main__ import main

    folder = tmp_path_factory.mktemp("index")
    draw_photos(folder / "photos")
    with pytest.raises(SystemExit) as left:
        main(["-q", "index", "tiny", str(folder / "photos"), "-o", str(folder / "vectors")])
    assert not left.value.code
    rows = [
        f"{file.parent.name}/{file.name},{','.join(file.parent.name.split('_'))},train"
        for file in sorted((folder / "photos").rglob("*.jpg"))
    ]
    (folder / "labels.csv").write_text("path,state,object,split\n" + "\n".join(rows) + "\n")
    return folder / "vectors"


def test_a_training_without_validation_images_is_calibrated_by_cross_validation(
    cli: Cli, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    settings = [
        "--set",
        "train.max_steps=4",
        "--set",
        "calibration.folds=3",
        "--set",
        "train.eval_every=9",
        *FEW,
    ]
    done = cli("train", index, "--labels", index.with_name("labels.csv"), *settings, "--out", run, "--json")
    assert done.code == 0, done.err
    assert "calibration follows by cross-validation in 3 parts" in done.err
    assert "cross-validation, part 3 of 3:" in done.err
    assert "; cross-validation AUC" in done.err
    assert done.json["val"]["AUC"] is None
    record = json.loads((run / "calibration.json").read_text())
    assert record["chosen_on"] == record["calibration"]["chosen_on"] == "cross-validation"
    assert record["cross_validation"]["after"]["AUC"] > 0
    assert record["cross_validation"]["after"]["n_unseen"] > 0
    assert read_config(model_folder(run))["calibration"] == record["calibration"]
    assert "cross-validation" in cli("-q", "info", run).out
    assert cli("-q", "runs", tmp_path, "--json").json["runs"][0]["folder"] == str(run)
    parts = [Run.open(run / "folds" / str(number)) for number in (1, 2, 3)]
    learned = [next(iter(read_tensors(model_folder(part.folder)).values())) for part in parts]
    assert not torch.equal(learned[0], learned[1])
    # Other candidates are compared without any training, and the same ones give the same choice.
    with monkeypatch.context() as during:
        during.setattr(Trainer, "fit", lambda *_: pytest.fail("trains again"))
        again = cli("-q", "calibrate", run, "--json")
        assert again.code == 0, again.err
        assert again.json["calibration"] == record["calibration"]
        assert again.json["cross_validation"] == record["cross_validation"]
        narrower = cli("-q", "calibrate", run, "--set", "calibration.wise_ft_alpha=1", "--json")
        assert narrower.code == 0, narrower.err
        assert len(narrower.json["candidates"]) < len(record["candidates"])
    fewer = cli("calibrate", run, "--set", "calibration.folds=2")
    assert fewer.code == 0, fewer.err
    assert "chosen on cross-validation" in fewer.out
    assert sorted(folder.name for folder in (run / "folds").iterdir()) == ["1", "2"]
    none = cli("-q", "calibrate", run, "--set", "calibration.folds=0", "--json")
    assert none.json["chosen_on"] == "nothing"
    assert cli("calibrate", run, "--set", "calibration.folds=1").code == 2


def test_an_interrupted_cross_validation_is_resumed(
    cli: Cli, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["--set", "train.max_steps=3", "--set", "calibration.folds=2", *FEW]
    command = ["-q", "train", index, "--labels", index.with_name("labels.csv"), *settings, "--json", "--out"]
    assert cli(*command, tmp_path / "whole").code == 0
    asked: list[int] = []
    whole_check = Trainer.stop_check

    def stop_in_the_first_part(_self: Trainer, _stop: object) -> ProgressFn:
        def check(_done: int, _total: int) -> None:
            asked.append(1)
            if len(asked) == 3:
                raise StopRequestedError

        return check

    monkeypatch.setattr(Trainer, "stop_check", stop_in_the_first_part)
    stopped = cli(*command, tmp_path / "run")
    assert stopped.json["interrupted"] is True
    assert [folder.name for folder in (tmp_path / "run" / "folds").iterdir()] == ["1"]
    assert not (tmp_path / "run" / "calibration.json").exists()
    monkeypatch.setattr(Trainer, "stop_check", whole_check)
    assert cli("-q", "train", "--resume", "--out", tmp_path / "run", "--json").code == 0
    records = [json.loads((tmp_path / name / "calibration.json").read_text()) for name in ("whole", "run")]
    assert records[0]["calibration"] == records[1]["calibration"]
    assert records[0]["candidates"] == records[1]["candidates"]
