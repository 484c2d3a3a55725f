"""``refiner convert``: from a folder of photos through a labelling tool's format to a dataset."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Cli


@pytest.fixture
def rows(cli: Cli, small_export: Path, small_demo: Path, tmp_path: Path) -> Path:
    """Predictions of the demo's images."""
    file = tmp_path / "rows.csv"
    assert cli("-q", "predict", small_export, small_demo / "images", "-o", file, "--top-k", "3").code == 0
    return file


def create(cli: Cli, source: Path, out: Path) -> int:
    done = cli("-q", "dataset", "create", source, "--out", out, "--json", "--all-train")
    assert done.code in {0, 5}, done.err  # 5: the model gave one photo and its copy different labels
    counts = done.json["counts"]
    return sum(counts[f"{split}_images"] for split in ("train", "val", "test"))


def test_answers_come_back_as_a_dataset(cli: Cli, rows: Path, tmp_path: Path) -> None:
    made = {}
    for to, out in (("label-studio", "ls"), ("image-folder", "tree"), ("csv", "table.csv")):
        done = cli("-q", "convert", rows, "--to", to, "-o", tmp_path / out, "--json")
        assert (done.code, done.json["schema"]) == (0, "refiner.convert/1")
        made[to] = done.json["images"]
    assert len(set(made.values())) == 1
    tasks = json.loads((tmp_path / "ls" / "tasks.json").read_text("utf-8"))
    export = tmp_path / "export.json"
    export.write_text(json.dumps([
        {"id": i, "data": task["data"], "annotations": [{"result": task["predictions"][0]["result"]}]}
        for i, task in enumerate(tasks)
    ]))  # fmt: skip
    sizes = {create(cli, source, tmp_path / f"data-{source.stem}")
             for source in (export, tmp_path / "tree", tmp_path / "table.csv")}  # fmt: skip
    assert len(sizes) == 1
    assert 0.9 * made["csv"] < sizes.pop() <= made["csv"]


def test_cleanlab_takes_labels_from_folders(
    cli: Cli, small_export: Path, small_demo: Path, tmp_path: Path
) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "labels.npz"
    cli("-q", "predict", small_export, small_demo / "images", "-o", rows)
    done = cli("-q", "convert", rows, "--to", "cleanlab", "-o", out, "--labels", small_demo / "images")
    assert (done.code, out.exists()) == (0, True)


def test_cleanlab_refuses_rows_without_the_lists_it_needs(
    cli: Cli, rows: Path, small_demo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels.npz"
    done = cli("-q", "convert", rows, "--to", "cleanlab", "-o", out, "--labels", small_demo / "images")
    assert (done.code, out.exists()) == (3, False)
    assert "lists no probabilities of states and objects" in done.err


def test_verdicts_are_counted_and_honoured(
    cli: Cli, small_export: Path, small_demo: Path, tmp_path: Path
) -> None:
    rows, table = tmp_path / "sure.jsonl", tmp_path / "sure.csv"
    cli("-q", "predict", small_export, small_demo / "images", "-o", rows, "--min-probability", "0.5")
    done = cli("-q", "convert", rows, "--to", "csv", "-o", table, "--json")
    said = [json.loads(line)["verdict"] for line in rows.read_text("utf-8").splitlines()]
    assert done.json["verdicts"] == Counter(said)
    assert len(set(said)) > 2
    noted = cli("convert", rows, "--to", "csv", "-o", tmp_path / "again.csv").err
    assert f"verdicts: pair {said.count('pair')}, object {said.count('object')}, state" in noted
    made = create(cli, table, tmp_path / "data")
    assert 0.9 * said.count("pair") < made <= said.count("pair")


def test_mistakes_are_said_before_the_work(cli: Cli, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments, code, says in (
        (["--to", "cleanlab", "-o", tmp_path / "a.npz"], 2, "needs --labels"),
        (["--to", "csv", "-o", tmp_path / "a.csv", "--labels", tmp_path], 2, "takes no --labels"),
        (["--to", "csv", "-o", tmp_path / "a.txt"], 2, "does not end in .csv"),
        (["--to", "csv", "-o", rows], 2, "exists already"),
        (["--to", "fiftyone", "-o", tmp_path / "file" / "x"], 2, "cannot be written"),
        (["--to", "csv", "-o", tmp_path / "a.csv", "--min-probability", "1"], 3, "below --min-probability"),
    ):
        done = cli("-q", "convert", rows, *arguments)
        assert done.code == code, done.err
        assert says in done.err
    assert cli("-q", "convert", tmp_path / "none.jsonl", "--to", "csv", "-o", tmp_path / "a.csv").code == 3
