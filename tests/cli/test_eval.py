"""``refiner eval`` beyond its plain form: score files, feasibility, intervals, per-image lines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

import refiner_cli
from refiner_cli.core.models.calibration import Confidence, Temperatures
from refiner_cli.core.runtime.device import RuntimeOptions
from refiner_cli.data.benchmark import World, load_benchmark
from refiner_cli.evaluation.evaluate import EvalOptions, evaluate_model
from refiner_cli.evaluation.metrics.bias_sweep import sweep
from refiner_cli.evaluation.report.sentences import calibration_text
from refiner_cli.inference.recogniser import Recogniser
from tests.conftest import Cli, parse_rows
from tests.evaluation.cases import make_case
from tests.evaluation.test_score_files import BAD, CASE, saved

SAMPLES = "--bootstrap-samples"


@pytest.mark.parametrize("protocol", ["exact", "legacy"])
def test_a_score_file_gets_the_same_treatment(cli: Cli, tmp_path: Path, protocol: Any) -> None:
    file = saved(tmp_path)
    result = cli("eval", "--scores", file, "--protocol", protocol, SAMPLES, 20, "--json").json
    assert (result["schema"], result["dataset"], set(result["worlds"])) == (
        "refiner.eval/1", "scores.npz", {"given"})  # fmt: skip
    given = result["worlds"]["given"]
    expected = sweep(CASE.summary(), CASE.space, protocol).to_json()
    assert {name: given[name] for name in expected} == expected
    low, high = given["intervals"]["AUC"]
    assert low <= given["AUC"] <= high
    assert f"{given['AUC']:.1f}" in cli("eval", "--scores", file, "--protocol", protocol, SAMPLES, 20).out


@pytest.mark.parametrize("message", BAD)
def test_a_bad_score_file_exits_3_and_names_the_place(cli: Cli, tmp_path: Path, message: str) -> None:
    outcome = cli("eval", "--scores", saved(tmp_path, **BAD[message]), "--json")
    assert (outcome.code, outcome.out) == (3, "")
    assert message in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_finite_exits_3(cli: Cli, tmp_path: Path, value: float) -> None:
    scores = CASE.scores.copy()
    scores[3, 2] = value
    outcome = cli("eval", "--scores", saved(tmp_path, scores=scores))
    assert outcome.code == 3
    assert "scores[3, 2]" in outcome.err


def test_ranks_are_those_requested(cli: Cli, tmp_path: Path) -> None:
    file = saved(tmp_path, allowed=None)
    given = cli("eval", "--scores", file, "--topk", "12,2", SAMPLES, 2, "--json").json["worlds"]["given"]
    better = (CASE.scores >= CASE.scores[np.arange(30), CASE.truth][:, None]).sum(1)
    assert {k: shares["all"] for k, shares in given["top_k"].items()} == {
        "2": pytest.approx(100 * (better <= 2).mean()),
        "12": 100,
    }


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["RUN", "--scores", "x.npz"],
        ["--scores", "x.npz", "--feasibility", "soft"],
        ["RUN", "--feasibility-vectors", "glove.txt"],
        ["RUN", "--feasibility", "soft", "--world", "closed"],
        ["RUN", "--topk", "0,1"],
        ["RUN", "--topk", "1,1"],
    ],
)
def test_contradicting_options_are_wrong_usage(cli: Cli, small_run: Path, arguments: list[str]) -> None:
    outcome = cli("eval", *[str(small_run) if a == "RUN" else a for a in arguments])
    assert (outcome.code, outcome.out) == (2, "")


def test_a_model_has_intervals_choices_and_a_line_per_image(
    cli: Cli, small_run: Path, small_demo: Path, tmp_path: Path
) -> None:
    lines = tmp_path / "images.jsonl"
    result = cli(
        "eval", small_run, "--feasibility", "mask", SAMPLES, 20, "--per-image", lines, "--json"
    ).json  # fmt: skip
    opened = result["worlds"]["open"]
    assert opened["feasibility"]["chosen_on"] == "val"
    assert len(opened["feasibility"]["candidates"]) == 50
    assert result["worlds"]["closed"]["feasibility"] is None
    stored = json.loads((small_run / "feasibility.json").read_text("utf-8"))
    assert stored == opened["feasibility"] | {"dataset_fingerprint": load_benchmark(small_demo).fingerprint()}
    samples = load_benchmark(small_demo).samples["test"]
    rows = parse_rows(lines.read_text("utf-8"))
    assert [(r["world"], r["image"], tuple(r["truth"])) for r in rows] == [
        (world, sample.path, sample.pair) for world in ("closed", "open") for sample in samples
    ]
    right = 100 * np.mean([r["rank"] == 1 for r in rows if r["world"] == "closed" and r["seen"]])
    assert right == pytest.approx(result["worlds"]["closed"]["top_k"]["1"]["seen"])


def test_a_line_has_the_probability_that_predict_gives(small_run: Path, small_demo: Path) -> None:
    model, benchmark = refiner_cli.load(small_run).model, load_benchmark(small_demo)
    closed, opened = (Confidence(Temperatures(pair=value)) for value in (2.0, 0.5))
    model.calibration = replace(model.calibration, closed=closed, open=opened)
    runtime, options = RuntimeOptions(torch.float32, 16, 0), EvalOptions(bootstrap_samples=2)
    result = evaluate_model(model, benchmark, "test", ("closed", "open"), runtime, options)
    rows = list(result.rows())
    for world in get_args(World):
        found = Recogniser(model, benchmark.label_space("test", world)).predict(
            benchmark.paths("test"), top_k=1
        )
        best = [one.compositions[0] for one in found]
        lines = [row for row in rows if row["world"] == world]
        assert [tuple(line["predicted"]) for line in lines] == [(one.state, one.object) for one in best]
        assert [line["probability"] for line in lines] == pytest.approx(
            [one.probability for one in best], rel=1e-4
        )
    text = calibration_text(result)
    for name, one in result.to_json()["worlds"].items():
        error = one["confidence"]["ece"]["pair"]
        assert (
            f"{error['before']:.1f} points before temperature and {error['after']:.1f} after it in the {name}"
            in text
        )


def test_similarity_can_come_from_word_vectors(
    cli: Cli, small_run: Path, small_demo: Path, tmp_path: Path
) -> None:
    space = load_benchmark(small_demo).vocabulary
    rng = np.random.default_rng(0)
    table = tmp_path / "vectors.txt"
    table.write_text(
        "".join(
            f"{name} {' '.join(map(str, rng.normal(size=4)))}\n" for name in {*space.states, *space.objects}
        )
    )
    result = cli(
        "eval", small_run, "--world", "open", "--feasibility", "soft", "--feasibility-vectors", table,
        SAMPLES, 2, "--json",
    ).json  # fmt: skip
    assert result["worlds"]["open"]["feasibility"]["source"] == "vectors.txt"


def test_rounded_scores_are_counted_as_ties(cli: Cli, tmp_path: Path) -> None:
    case = make_case(3, images=30, states=3, objects=4, ties=True)
    changed = {"scores": case.scores, "truth": case.truth, "seen": case.space.seen, "allowed": None}
    given = cli("eval", "--scores", saved(tmp_path, **changed), SAMPLES, 2, "--json").json["worlds"]["given"]
    assert given["ties"] > 0


def test_a_narrow_terminal_cuts_off_no_number(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refiner_cli.cli.console import terminal

    monkeypatch.setattr(terminal.out, "_width", 40)
    text = cli("eval", "--scores", saved(tmp_path), SAMPLES, 5).out
    given = cli("eval", "--scores", saved(tmp_path), SAMPLES, 5, "--json").json["worlds"]["given"]
    low, high = given["intervals"]["object_acc"]
    assert f"{low:.1f}..{high:.1f}" in text
    assert "…" not in text


@pytest.mark.parametrize("protocol", ["exact", "legacy"])
@pytest.mark.parametrize(("only", "undefined"), [("seen", "U"), ("unseen", "S")])
def test_what_a_split_cannot_measure_is_null_a_dash_and_explained(
    cli: Cli, tmp_path: Path, protocol: str, only: str, undefined: str
) -> None:
    case = make_case(6, only=only, skill=2.0)
    file = saved(tmp_path, scores=case.scores, truth=case.truth, seen=case.space.seen, allowed=None)
    arguments = ["eval", "--scores", file, "--protocol", protocol, SAMPLES, 5]
    given = cli(*arguments, "--json").json["worlds"]["given"]
    for name in (undefined, "HM", "AUC"):
        assert given[name] is None
        assert given["intervals"][name] is None
        assert "no image of" in given["undefined"][name]
    assert given["bias"] is None
    assert given["top_k"]["1"]["unseen" if only == "seen" else "seen"] is None
    outcome = cli(*arguments, "--report", tmp_path / "page.html")
    row = next(line for line in outcome.out.splitlines() if line.startswith("given "))
    assert row.split().count("-") == len(given["undefined"])
    assert f"{undefined}, HM, AUC undefined" in outcome.err.replace("S, U,", "U,")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "nan" not in page
    assert "None" not in page
    assert "no image of" in page
