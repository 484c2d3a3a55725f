"""The few-shot and warm-start studies: what is drawn, the linear probe, the tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from refiner_cli.core.model_io.zero_shot import zero_shot_model
from refiner_cli.data.benchmark import Benchmark, Sample, load_benchmark
from refiner_cli.experiments import few_shot, warm_starts
from refiner_cli.experiments.few_shot import (
    LEARNED,
    LINEAR_PROBE,
    OWN_BIAS,
    FewShotMethod,
    FewShotStudy,
    draw_images,
    few_shot_parser,
    shots_table,
    spread,
    t_quantile,
    with_vectors,
)
from refiner_cli.experiments.linear_probe import fit_probe, logits, probe_metrics
from refiner_cli.experiments.result_file import StudyFigures
from refiner_cli.experiments.warm_starts import halves, starts_table, with_objects
from refiner_cli.inference.encoded import EncodedBenchmark


@pytest.fixture(scope="module")
def benchmark(small_demo: Path) -> Benchmark:
    return load_benchmark(small_demo)


def test_draws_are_balanced_nested_and_differ(benchmark: Benchmark) -> None:
    one, two, all_of_them = (draw_images(benchmark, shots, 0) for shots in (1, 2, 99))
    assert set(Counter(sample.pair for sample in one.samples["train"]).values()) == {1}
    assert set(one.samples["train"]) < set(two.samples["train"]) <= set(benchmark.samples["train"])
    assert sorted(map(str, all_of_them.samples["train"])) == sorted(map(str, benchmark.samples["train"]))
    assert draw_images(benchmark, 1, 1).samples["train"] != one.samples["train"]
    assert (one.samples["val"], one.samples["test"]) == ((), benchmark.samples["test"])


def test_the_probe_is_the_minimum_of_the_penalised_loss() -> None:
    torch.manual_seed(0)
    vectors, truth = F.normalize(torch.randn(30, 8), dim=-1), torch.randint(0, 4, (30,))
    weights = fit_probe(vectors, truth, 4, 1e-2).requires_grad_()
    loss = F.cross_entropy(logits(vectors, weights), truth) + 1e-2 * weights[:, :-1].square().sum()
    (gradient,) = torch.autograd.grad(loss, weights)
    assert gradient.abs().max() < 1e-3
    for _ in range(20):
        other = weights.detach() + 0.05 * torch.randn_like(weights)
        assert F.cross_entropy(logits(vectors, other), truth) + 1e-2 * other[:, :-1].square().sum() > loss


def test_the_probe_recognises_what_its_vectors_say(benchmark: Benchmark) -> None:
    space = benchmark.vocabulary

    def vectors(samples: tuple[Sample, ...]) -> torch.Tensor:
        states = torch.tensor([space.states.index(sample.pair[0]) for sample in samples])
        objects = torch.tensor([space.objects.index(sample.pair[1]) for sample in samples])
        both = [F.one_hot(states, len(space.states)), F.one_hot(objects, len(space.objects))]
        return F.normalize(torch.cat(both, 1).float(), dim=-1)

    every = EncodedBenchmark(
        benchmark.name, benchmark.root, benchmark.pairs, benchmark.samples,
        {split: vectors(found) for split, found in benchmark.samples.items()},
    )  # fmt: skip
    few = with_vectors(draw_images(benchmark, 1, 0), every)
    assert torch.equal(few.vectors["train"], vectors(few.samples["train"]))
    assert probe_metrics(few)[1].AUC == 100


@pytest.mark.parametrize(
    ("freedom", "published"),
    [(1, 12.706), (4, 2.776), (9, 2.262), (10, 2.228), (11, 2.201), (15, 2.131), (29, 2.045), (120, 1.980)],
)
def test_quantiles_of_student_are_those_of_the_tables(freedom: int, published: float) -> None:
    assert t_quantile(freedom) == pytest.approx(published, abs=0.005 if freedom < 10 else 0.0006)


def test_intervals_and_tables() -> None:
    assert spread([10.0, 12.0, 14.0]) == "12.0 ± 5.0"  # 4.30 * 2 / sqrt(3)
    assert spread([float(n % 2) for n in range(12)]) == "0.5 ± 0.3"  # 2.20 * 0.522 / sqrt(12)
    assert spread([30.0 * (n % 2) for n in range(12)]) == "15.0 ± 10.0"  # 8.9 with the normal quantile
    assert spread([None, 3.0]) == "3.0"
    assert spread([None]) == "-"
    found: list[list[StudyFigures]] = [
        [{"S": 1.0, "U": 2.0, "AUC": 3.0, OWN_BIAS: 2.5}] * 2,
        [{"S": 4.0, "U": 5.0, "AUC": None, OWN_BIAS: None}],
    ]
    lines = shots_table({"csp": found}, {"csp": "CSP"}, [1, 4])
    assert lines[:5] == ["AUC, closed world, by images a pair:", "", "|  | 1 | 4 |", "|---|---|---|",
                         "| CSP | 3.0 ± 0.0 | - |"]  # fmt: skip


def test_a_result_is_used_again_only_for_the_same_data_and_settings(
    benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []

    def learn(self: FewShotStudy, method: FewShotMethod, few: Benchmark, draw: int) -> StudyFigures:
        computed.append(method.name)
        return {"AUC": float(len(computed))}

    monkeypatch.setattr(FewShotStudy, "learn", learn)
    zero, _ = zero_shot_model("tiny", benchmark.vocabulary)
    none = EncodedBenchmark(benchmark.name, benchmark.root, benchmark.pairs, benchmark.samples)
    study = FewShotStudy(tmp_path, benchmark, none, zero, lambda _: None)
    csp = LEARNED[0]
    first = study.figures(csp, 1, 0)
    assert study.figures(csp, 1, 0) == first
    (file,) = tmp_path.glob("csp/*.json")
    fewer = replace(benchmark.samples["test"][0], path="another.png")
    samples = {**benchmark.samples, "test": (fewer, *benchmark.samples["test"][1:])}
    others = [
        (replace(study, whole=replace(benchmark, samples=samples)), csp),
        (study, replace(csp, settings={**csp.settings, "train.lr": 0.5})),
        (study, replace(csp, on_vectors=False)),
    ]
    for changed, method in others:
        assert changed.figures(method, 1, 0) != first
        assert changed.figures(method, 1, 0) == changed.figures(method, 1, 0)
        assert list(tmp_path.glob("csp/*.json")) == [file]
    with torch.no_grad():
        next(zero.clip.parameters()).add_(1.0)
    assert study.figures(csp, 1, 0)["AUC"] == len(computed) == 5
    assert study.figures(LINEAR_PROBE, 1, 0)["AUC"] == 6.0


def test_a_warm_start_is_used_again_only_for_the_same_data(
    small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []

    def compare(benchmark: Benchmark, shots: int, draw: int) -> StudyFigures:
        computed.append(len(benchmark.samples["test"]))
        return {f"{side} {metric}": 1.0 for side in ("warm", "cold") for metric in ("S", "U", "HM", "AUC")}

    monkeypatch.setattr(warm_starts, "compare_starts", compare)
    command = ["--out", str(tmp_path), "--draws", "2", "--dataset"]
    warm_starts.main([*command, str(small_demo)])
    warm_starts.main([*command, str(small_demo)])
    assert len(computed) == 2
    load = load_benchmark
    monkeypatch.setattr(
        warm_starts,
        "load_benchmark",
        lambda place: replace(load(place), samples={**load(place).samples, "test": ()}),
    )
    warm_starts.main([*command, str(small_demo)])
    assert computed[2:] == [0, 0]


def test_folders_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        few_shot.main(["--out", str(tmp_path), "--dataset", str(tmp_path / "a" / "x"), str(tmp_path / "x")])
    assert "different names" in capsys.readouterr().err
    assert few_shot_parser().parse_args(["--out", "x", "--dataset", "a/x"]).dataset == [Path("a/x")]


def test_halves_share_no_object_and_unseen_pairs_are_learnable(benchmark: Benchmark) -> None:
    known, new = halves(benchmark, 0)
    assert not known & new
    assert known | new == set(benchmark.objects)
    assert halves(benchmark, 1) != (known, new)
    half = with_objects(benchmark, new)
    states = {state for state, _ in half.pairs["train"]}
    for split in ("val", "test"):
        assert all(obj in new and state in states for state, obj in half.pairs[split])
        assert {sample.pair for sample in half.samples[split]} <= set(half.pairs[split])
    figures: StudyFigures = {
        f"{name} {metric}": value
        for name, value in (("warm", 5.0), ("cold", 2.0))
        for metric in ("S", "U", "HM", "AUC")
    }
    assert starts_table([figures, figures])[-1] == "| difference | " + " | ".join(["3.0 ± 0.0"] * 4) + " |"
