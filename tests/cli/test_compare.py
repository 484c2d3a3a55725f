"""``refiner compare`` on real runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from refiner_cli.demo.dataset import DemoSize, make_demo
from tests.conftest import SMALL_RUN_SETTINGS, Cli

SAMPLES = "--bootstrap-samples"


@pytest.fixture(scope="module")
def other_seed(small_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``small_run`` is, from another seed."""
    from refiner_cli.__main__ import main

    folder = tmp_path_factory.mktemp("runs") / "other"
    arguments = ["--backbone", "tiny", "--out", str(folder), *SMALL_RUN_SETTINGS, "--seed", "1"]
    with pytest.raises(SystemExit) as left:
        main(["-q", "train", str(small_demo), *arguments])
    assert not left.value.code
    return folder


def test_two_seeds_and_an_export(cli: Cli, small_run: Path, other_seed: Path, small_export: Path) -> None:
    runs = [str(path) for path in (small_run, other_seed, small_export)]
    result = cli("compare", *runs, SAMPLES, 20, "--json").json
    assert result["schema"] == "refiner.compare/1"
    assert [run["run"] for run in result["runs"]] == runs
    of_seed, of_export = result["differences"]
    for world in ("closed", "open"):
        assert {d["value"] for d in of_export["worlds"][world].values()} == {0}
        aucs = [run["worlds"][world]["AUC"] for run in result["runs"]]
        assert of_seed["worlds"][world]["AUC"]["value"] == aucs[1] - aucs[0]
    assert [group["runs"] for group in result["seeds"]] == [runs[:2]]
    evaluated = cli("eval", small_run, "--world", "open", SAMPLES, 20, "--json").json["worlds"]["open"]
    assert result["runs"][0]["worlds"]["open"]["intervals"] == evaluated["intervals"]


def test_a_copy_or_a_training_on_other_data_is_no_seed(
    cli: Cli, small_run: Path, other_seed: Path, small_demo: Path, tmp_path: Path
) -> None:
    for name, source, change in (
        ("copy", small_run, {}),
        ("less", other_seed, {"skipped": ["a.jpg"]}),
    ):
        run = tmp_path / name
        shutil.copytree(source, run)
        content = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(content | change))
    few = ("--dataset", small_demo, "--world", "closed", SAMPLES, 2, "--json")
    assert cli("compare", small_run, tmp_path / "copy", tmp_path / "less", *few).json["seeds"] == []


def test_the_table_has_runs_differences_and_seeds(cli: Cli, small_run: Path, other_seed: Path) -> None:
    arguments = ["compare", small_run, other_seed, "--world", "closed", SAMPLES, 5]
    text = cli(*arguments).out
    what = "(refiner, tiny)"
    assert text.startswith(f"1  {small_run}  {what}\n2  {other_seed}  {what}\n")
    assert "seeds of 1, 2" in text
    command = re.escape(f"refiner compare {small_run} {other_seed} --world closed")
    assert re.search(rf"^20\d\d-\d\d-\d\d .*: {command} ", text, re.MULTILINE)
    assert "open world" not in text
    answer = cli(*arguments, "--json").json
    assert answer["date"].startswith("20")
    assert answer["command"].startswith(f"refiner compare {small_run} ")
    world = answer["differences"][0]["worlds"]["closed"]
    for found in world.values():
        low, high = found["interval"]
        assert f"{low:.1f}..{high:.1f}" in text


def test_a_run_is_not_compared_with_itself_or_other_data(cli: Cli, small_run: Path, tmp_path: Path) -> None:
    assert cli("compare", small_run).code == 2
    assert cli("compare", small_run, small_run).code == 2
    make_demo(tmp_path / "drawn", 9, DemoSize(1, 1, 1))
    other = tmp_path / "other"
    cli(
        "train",
        tmp_path / "drawn",
        "--backbone",
        "tiny",
        "--method",
        "clip",
        "--out",
        other,
        *SMALL_RUN_SETTINGS,
    )
    outcome = cli("compare", small_run, other, SAMPLES, 2)
    assert outcome.code == 3
    assert "other data" in outcome.err


def test_every_run_is_looked_at_before_any_is_evaluated(
    cli: Cli, small_run: Path, small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refiner_cli.evaluation.evaluate.evaluate_model", None)
    for options in ([], ["--dataset", small_demo]):
        outcome = cli("compare", small_run, tmp_path / "missing", *options)
        assert (outcome.code, outcome.out) == (3, "")
        assert "missing" in outcome.err


def test_a_run_is_compared_with_the_backbone_it_came_from(cli: Cli, small_run: Path) -> None:
    result = cli("compare", "tiny", small_run, "--world", "closed", SAMPLES, 2, "--json").json
    assert [(run["run"], run["method"], run["backbone"]) for run in result["runs"]] == [
        ("tiny", "clip", "tiny"),
        (str(small_run), "refiner", "tiny"),
    ]
    assert cli("compare", "tiny", "ViT-B-32").code == 2  # no dataset
