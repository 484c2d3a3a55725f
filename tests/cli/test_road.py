"""The whole road on a small scale: train, eval, predict, export, info."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Cli, parse_rows

METRICS = {"S", "U", "HM", "AUC", "state_acc", "object_acc", "bias", "n_seen", "n_unseen"}


def test_eval_reports_both_worlds(cli: Cli, small_run: Path) -> None:
    result = cli("eval", small_run, "--json").json
    assert (result["schema"], result["split"], result["protocol"]) == ("refiner.eval/1", "test", "exact")
    assert set(result["worlds"]) == {"closed", "open"}
    for metrics in result["worlds"].values():
        assert set(metrics) >= METRICS
        assert 0 <= metrics["AUC"] <= 100
    assert result["worlds"]["open"]["AUC"] <= result["worlds"]["closed"]["AUC"]
    biases = [result["worlds"][world]["validation_bias"] for world in ("closed", "open")]
    assert biases == [result["calibration"]["bias"], result["calibration"]["open_bias"]]
    assert biases[0] != biases[1]
    table = cli("eval", small_run, "--world", "closed")
    assert f"{result['worlds']['closed']['AUC']:.1f}" in table.out
    assert "open" not in table.out


def test_an_export_predicts_what_its_run_predicts(
    cli: Cli, small_run: Path, small_export: Path, small_demo: Path, tmp_path: Path
) -> None:
    found = []
    for name, model in (("run", small_run), ("export", small_export)):
        out = tmp_path / f"{name}.jsonl"
        summary = cli("predict", model, small_demo / "images", "-o", out, "--top-k", 2, "--json").json
        assert summary["schema"] == "refiner.predict/1"
        found.append(parse_rows(out.read_text()))
    assert found[0] == found[1]
    files = {p.relative_to(small_demo / "images").as_posix() for p in (small_demo / "images").rglob("*.jpg")}
    assert {row["path"] for row in found[0]} == files


def test_a_half_precision_export_is_half_as_large(
    cli: Cli, small_run: Path, small_export: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    assert cli("export", small_run, half, "--dtype", "fp16").code == 0
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (half, small_export)]
    assert sizes[0] < 0.55 * sizes[1]
    assert (
        cli("-q", "predict", half, next((small_run.parent).rglob("nothing*"), half / "README.md")).code == 5
    )
    card = (half / "README.md").read_text()
    assert "fp16" in card
    assert cli("export", small_run, half).code == 2


def test_an_export_may_leave_the_backbone_out(
    cli: Cli, small_run: Path, small_demo: Path, tmp_path: Path
) -> None:
    thin = tmp_path / "thin"
    cli("export", small_run, thin, "--no-backbone")
    image = next((small_demo / "images").rglob("*.jpg"))
    rows = [cli("-q", "predict", model, image).out for model in (thin, small_run)]
    assert rows[0] == rows[1]


def test_an_unreadable_image_is_a_row_and_exit_5(
    cli: Cli, small_export: Path, small_demo: Path, tmp_path: Path
) -> None:
    good = next((small_demo / "images").rglob("*.jpg"))
    (tmp_path / "good.jpg").write_bytes(good.read_bytes())
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xffnothing")
    outcome = cli("predict", small_export, tmp_path)
    rows = parse_rows(outcome.out)
    assert outcome.code == 5
    assert [(row["path"], row["status"]) for row in rows] == [("bad.jpg", "error"), ("good.jpg", "ok")]
    assert "bad.jpg" in rows[0]["error"]
    assert cli("predict", small_export, tmp_path, "--on-error", "fail").code == 1


def test_predict_takes_an_own_vocabulary(
    cli: Cli, small_export: Path, small_demo: Path, tmp_path: Path
) -> None:
    (tmp_path / "pairs.txt").write_text("dotted tie\nburnt apple\n")
    image = next((small_demo / "images").rglob("*.jpg"))
    row = json.loads(cli("predict", small_export, image, "--pairs", tmp_path / "pairs.txt").out)
    assert {(p["state"], p["object"], p["seen"]) for p in row["predictions"]} == {
        ("dotted", "tie", False), ("burnt", "apple", True)}  # fmt: skip


def test_info_describes_datasets_runs_and_models(
    cli: Cli, small_run: Path, small_export: Path, small_demo: Path
) -> None:
    dataset = cli("info", small_demo, "--json").json
    assert (dataset["kind"], dataset["states"], dataset["objects"]) == ("dataset", 12, 16)
    run, model = (cli("info", path, "--json").json for path in (small_run, small_export))
    assert run["kind"] == model["kind"] == "model"
    assert run["calibration"] == model["calibration"]
    assert model["backbone"]["included"]
    assert not run["backbone"]["included"]


def test_doctor_says_what_there_is(cli: Cli) -> None:
    checks = {check["name"]: check for check in cli("doctor", "--json").json["checks"]}
    assert checks["device"]["ok"]
    assert "PyTorch" in checks


def test_a_run_is_never_overwritten(cli: Cli, small_run: Path, small_demo: Path) -> None:
    before = (small_run / "metrics.jsonl").read_bytes()
    outcome = cli("train", small_demo, "--backbone", "tiny", "--out", small_run)
    assert outcome.code == 2
    assert "exists already" in outcome.err
    assert (small_run / "metrics.jsonl").read_bytes() == before


def test_the_zero_shot_baseline_is_a_method_too(cli: Cli, small_demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "clip"
    result = cli("train", small_demo, "--backbone", "tiny", "--method", "clip", "--out", out, "--json").json
    assert (result["step"], result["best_step"]) == (0, 0)
    assert cli("eval", out, "--world", "closed", "--json").json["worlds"]["closed"]["n_seen"] == 28


def test_grocery_trains_evaluates_and_predicts(cli: Cli, shared: Path, tmp_path: Path) -> None:
    grocery, run = shared / "grocery", tmp_path / "run"
    cli("train", grocery, "--backbone", "tiny", "--set", "train.max_steps=2", "--out", run)
    worlds = cli("eval", run, "--json").json["worlds"]
    assert worlds["closed"]["n_seen"] + worlds["closed"]["n_unseen"] == 469
    folder = grocery / "images" / "yellow_pepper"
    rows = cli("predict", run, folder, "--top-k", 1).out.splitlines()
    assert len(rows) == len(list(folder.iterdir()))


def test_a_model_of_other_labels_is_refused(cli: Cli, small_run: Path, shared: Path) -> None:
    outcome = cli("eval", small_run, "--dataset", shared / "grocery")
    assert outcome.code == 3
    assert "label space" in outcome.err


@pytest.mark.slow
def test_a_real_towers_path_runs_at_real_width(cli: Cli, small_demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small = ["--set", "train.max_steps=1", "--set", "train.batch_size=4"]
    small += ["--set", "calibration.tta_shifts=1"]
    outcome = cli(
        "train", small_demo, "--backbone", "ViT-B-32", "--pretrained", "none", *small, "--out", out, "--json"
    )
    assert outcome.json["step"] == 1
