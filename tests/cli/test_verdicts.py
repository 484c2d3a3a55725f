"""``predict --min-precision`` and ``--min-probability``: what is sure, and the threshold used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refiner_cli.core.model_io.checkpoint import read_config
from refiner_cli.inference.formats import read_rows
from tests.conftest import Cli, parse_rows

LEVELS = {"pair": "predictions", "object": "objects", "state": "states"}


def named(row: dict[str, Any], threshold: float) -> tuple[str | None, str | None]:
    """The state and object that this verdict says."""
    pair, state, thing = (row[group][0] for group in ("predictions", "states", "objects"))
    return {"pair": (pair.get("state"), pair.get("object")), "object": (None, thing["name"]),
            "state": (state["name"], None), "unknown": (None, None)}[said(row, threshold)]  # fmt: skip


@pytest.fixture(scope="module")
def photos(small_demo: Path) -> list[Path]:
    return sorted((small_demo / "images").rglob("*.jpg"))[::12]


def said(row: dict[str, Any], threshold: float) -> str:
    """The verdict that a row's own probabilities give."""
    sure = [level for level, ranked in LEVELS.items() if row[ranked][0]["probability"] >= threshold]
    return sure[0] if sure else "unknown"


def test_every_row_says_what_is_sure(
    cli: Cli, small_export: Path, photos: list[Path], tmp_path: Path
) -> None:
    rows = parse_rows(cli("-q", "predict", small_export, *photos).out)
    assert {(row["verdict"], row["threshold"]) for row in rows} == {(None, None)}
    best = sorted(row["predictions"][0]["probability"] for row in rows)
    threshold = best[len(best) // 2]
    files = [tmp_path / f"rows{suffix}" for suffix in (".jsonl", ".csv", ".parquet")]
    for file in files:
        done = cli("-q", "predict", small_export, *photos, "--min-probability", threshold, "-o", file)
        assert done.code == 0, done.err
        found = {row["path"]: (row["verdict"], row["threshold"]) for row in read_rows(file)}
        names = {row["path"]: (row["verdict_state"], row["verdict_object"]) for row in read_rows(file)}
        assert names == {row["path"]: named(row, threshold) for row in rows}
        want = {row["path"]: said(row, threshold) for row in rows}
        assert {path: verdict for path, (verdict, _) in found.items()} == want
        assert len(set(want.values())) > 1
        for verdict, value in found.values():
            assert value == (None if verdict == "unknown" else pytest.approx(threshold))
    other = cli("predict", small_export, *photos, "--min-probability", "0.99", "-o", files[0])
    assert (other.code, "made with another verdict" in other.err) == (2, True)
    page = tmp_path / "page.html"
    arguments = ("--min-probability", threshold, "-o", files[0], "--gallery", page)
    assert cli("-q", "predict", small_export, *photos, *arguments).code == 0
    assert '"pair", "sure"' in page.read_text("utf-8")


def test_a_promised_precision_takes_the_models_thresholds(
    cli: Cli, small_export: Path, photos: list[Path], tmp_path: Path
) -> None:
    promises = read_config(small_export)["calibration"]["closed"]["promises"]
    kept = [p for p in promises if any(p[level]["probability"] is not None for level in LEVELS)]
    assert len(promises) == 13
    assert kept
    lowest = kept[0]
    done = cli("predict", small_export, *photos, "--min-precision", lowest["precision"])
    assert done.code == 0, done.err
    assert "verdicts from these probabilities on" in done.err
    for line in done.out.splitlines():
        row = json.loads(line)
        sure = (
            level
            for level, ranked in LEVELS.items()
            if (value := lowest[level]["probability"]) is not None and row[ranked][0]["probability"] >= value
        )
        assert row["verdict"] == next(sure, "unknown")
    (tmp_path / "states.txt").write_text("burnt\nwet\n")
    own = cli(
        "predict", small_export, *photos, "--min-precision", lowest["precision"], "--world", "open",
        "--states", tmp_path / "states.txt",
    )  # fmt: skip
    assert own.code in {0, 2}
    assert ("yours have no labels" in own.err) == (own.code == 0)


def test_what_no_verdict_can_be_given_for_is_named(
    cli: Cli, small_export: Path, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "states.txt").write_text("burnt\nwet\n")
    (tmp_path / "objects.txt").write_text("apple\npear\n")
    words = ("--states", tmp_path / "states.txt", "--objects", tmp_path / "objects.txt")
    zero_shot = cli("predict", "tiny", photos[0], *words, "--min-precision", "0.9")
    assert (zero_shot.code, "use --min-probability instead" in zero_shot.err) == (2, True)
    both = cli("predict", small_export, photos[0], "--min-precision", "0.9", "--min-probability", "0.9")
    assert (both.code, "exclude each other" in both.err) == (2, True)
    for value in ("0", "1", "90"):
        wrong = cli("predict", small_export, photos[0], "--min-precision", value)
        assert (wrong.code, "is not between 0 and 1" in wrong.err) == (2, True)


def test_evaluation_reports_calibration_errors_and_thresholds(
    cli: Cli, small_run: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    found = cli("-q", "eval", small_run, "--bootstrap-samples", "2", "--report", report, "--json").json
    for world in found["worlds"].values():
        confidence = world["confidence"]
        assert set(confidence["ece"]) == {"pair", "object", "state"}
        assert all(0 <= value <= 100 for side in confidence["ece"].values() for value in side.values())
        assert len(confidence["thresholds"]) == 13 * 3
        for row in confidence["thresholds"]:
            assert (row["split"]["precision"] is None) == (row["split"]["coverage"] == 0)
    page = report.read_text("utf-8")
    assert "before temperature" in page
    assert "Verdicts with a promised precision" in page
