"""``refiner predict -o DIR/`` and ``refiner merge``."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refiner_cli.inference.formats import read_rows
from refiner_cli.inference.index import Index
from refiner_cli.inference.parts.plan import LEASES
from tests.conftest import ROOT, Cli
from tests.inference.sources.packing import draw_noise, write_shards


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw_noise(tmp_path / "photos", 10)
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no image")
    return tmp_path / "photos"


def rows_by_name(file: Path) -> dict[str, Any]:
    rows = list(read_rows(file))
    found = {
        "/".join(row["path"].split("/")[-2:]): row | {"path": "", "error": bool(row["error"])} for row in rows
    }
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_parts_hold_the_rows_of_one_file(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path, kind: str
) -> None:
    one, parts = tmp_path / "one.jsonl", f"{tmp_path}/parts/"
    assert cli("-q", "predict", small_export, photos, "-o", one, "--batch", "4").code == 5
    options = ["--part-size", "4", "--batch", "4", "--format", kind, "--json"]
    for part in ("1/2", "2/2"):
        done = cli("-q", "predict", small_export, photos, "-o", parts, *options, "--part", part)
    assert (done.code, done.json["units"], done.json["units_done"]) == (5, 3, 3)
    assert (done.json["images"], done.json["errors"]) == (11, 1)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "parts" / "parts").iterdir()}
    again = cli("-q", "predict", small_export, photos, "-o", parts, *options)
    assert again.code == 5
    assert {file: file.stat().st_mtime_ns for file in before} == before
    merged = cli("-q", "merge", parts, "-o", tmp_path / "all.jsonl", "--json")
    assert (merged.code, merged.json["images"], merged.json["errors"]) == (0, 11, 1)
    assert rows_by_name(tmp_path / "all.jsonl") == rows_by_name(one)
    (tmp_path / "parts" / "parts" / f"00000001.{kind}").unlink()
    assert cli("merge", parts, "-o", tmp_path / "all.csv").code == 1
    assert cli("-q", "predict", small_export, photos, "-o", parts, *options).code == 5
    assert cli("merge", parts, "-o", tmp_path / "all.csv").code == 0


def test_a_shard_is_a_unit(cli: Cli, small_export: Path, photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.rglob("*.jpg"))
    write_shards(f"{tmp_path}/shard-%04d.tar", photos, files)
    shards, parts = f"{tmp_path}/shard-{{0000..0002}}.tar", f"{tmp_path}/parts/"
    done = cli("-q", "predict", small_export, shards, "-o", parts, "--json")
    assert (done.code, done.json["units"], done.json["images"]) == (5, 3, 11)
    first = [row["path"] for row in read_rows(tmp_path / "parts" / "parts" / "00000000.jsonl")]
    assert len(first) == 4
    assert all(path.startswith(f"{tmp_path}/shard-0000.tar/") for path in first)


@pytest.mark.parametrize(
    "launcher",
    [{"SLURM_ARRAY_TASK_ID": "{}", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "0"},
     {"RANK": "{}", "WORLD_SIZE": "2", "LOCAL_RANK": "{}"}],
)  # fmt: skip
def test_tasks_of_a_launcher_take_their_units(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    launcher: dict[str, str],
) -> None:  # fmt: skip
    done = []
    for task in range(2):
        for name, value in launcher.items():
            monkeypatch.setenv(name, value.format(task))
        command = ("-q", "predict", small_export, photos, "-o", f"{tmp_path}/parts/", "--part-size", "4")
        done.append(cli(*command, "--json").json["units_done"])
    assert done == [2, 3]


def test_mistakes_with_parts_are_wrong_usage(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, mine = f"{tmp_path}/parts/", tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    assert cli("-q", "predict", small_export, photos, "-o", parts, "--part-size", "4").code == 5
    for options, says in (
        (["-o", parts, "--part-size", "5"], "unit images"),
        (["-o", parts, "--part-size", "4", "--top-k", "2"], "top k"),
        (["-o", mine], "other files"),
        (["-o", parts, "--gallery", "x.html"], "--gallery"),
        (["-o", parts, "--format", "csv"], "csv"),
        (["-o", parts, "--part", "3/2"], "--part"),
        (["-o", "x.jsonl", "--part", "1/2"], "--part"),
        (["--devices", "all"], "--devices"),
        (["-o", parts, "--overwrite", "--part", "1/2"], "--overwrite"),
    ):
        done = cli("predict", small_export, photos, *options)
        assert done.code == 2, options
        assert says in done.err
    assert (mine / "thesis.tex").exists()
    assert cli("merge", photos, "-o", tmp_path / "x.jsonl").code == 3
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "-o DIR/" in cli("predict", small_export, photos, "-o", "x.jsonl").err
    monkeypatch.setenv("WORLD_SIZE", "")
    monkeypatch.setenv("REFINER_LEASE_SECONDS", "soon")
    assert cli("predict", small_export, photos, "-o", parts, "--part-size", "4").code == 2


def test_several_devices_share_the_units_and_leave_one_result(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    one, merged, parts = tmp_path / "one.jsonl", tmp_path / "all.jsonl", tmp_path / "parts"
    alone = cli("-q", "predict", small_export, photos, "-o", one, "--batch", "2", "--device", "cpu")
    assert alone.code == 5
    command = [sys.executable, "-m", "refiner_cli", "-q", "predict", str(small_export), str(photos), "-o",
               f"{parts}/", "--part-size", "2", "--batch", "2", "--devices", "cpu,cpu", "--json"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert json.loads(done.stdout)["images"] == 11
    assert list((parts / LEASES).iterdir()) == []
    assert len(list((parts / "parts").iterdir())) == 6  # units, and nothing half-written
    assert cli("-q", "merge", parts, "-o", merged).code == 0
    assert rows_by_name(merged) == rows_by_name(one)


def test_an_index_is_made_in_parts_and_counts_when_all_are_there(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert cli("-q", "index", small_export, photos, "-o", alone, "--batch", "4").code == 5
    options = ("index", small_export, photos, "-o", shared, "--part-size", "4", "--batch", "4")
    first = cli(*options, "--part", "2/2")
    assert (first.code, "1 of 3 units done" in first.err) == (0, True)
    assert not (shared / "index.json").exists()
    assert cli("-q", *options, "--part", "1/2", "--json").json["images"] == 11
    rows = [list(map(json.loads, cli("-q", "predict", small_export, place).out.splitlines())) for place in
            (alone, shared)]  # fmt: skip
    assert [[row["path"] for row in some] for some in rows] == [[row["path"] for row in rows[0]]] * 2
    for one, other in zip(*rows, strict=True):
        if one["status"] == "ok":
            assert one["predictions"][0]["score"] == pytest.approx(other["predictions"][0]["score"], abs=0.02)
    assert cli("-q", *options, "--part", "1/2").code == 5  # complete already
    for other, says in (((photos / "a",), "holds images of"), ((photos,), "another model")):
        model = "tiny" if says == "another model" else small_export
        refused = cli("-q", "index", model, *other, "-o", shared, "--part", "1/2")
        assert (refused.code, says in refused.err) == (2, True)
    (photos / "bad.jpg").unlink()
    again = cli("-q", *options, "--json")
    assert (again.code, again.json["kept"], again.json["dropped"]) == (0, 10, 1)
    assert cli("-q", "index", small_export, photos, "-o", photos, "--part", "1/2").code == 2


def test_an_index_is_of_the_command_that_made_its_plan(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    index, empty = tmp_path / "index", tmp_path / "empty"
    empty.mkdir()
    assert cli("-q", "index", "tiny", empty, "-o", index, "--part", "1/1").code == 2
    assert cli("-q", "index", small_export, photos, "-o", index, "--part", "1/1").code == 5
    made = Index.open(index).info
    assert (made.places, made.model["path"]) == ([str(photos)], str(small_export))
    assert len(cli("-q", "predict", small_export, index).out.splitlines()) == 11


def test_parts_of_other_verdicts_or_other_files_are_refused(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    one, two = (photos / "a" / "0000.jpg", photos / "b" / "0001.jpg")
    command = ("-q", "predict", small_export, one, "-o", f"{tmp_path}/parts/")
    assert cli(*command).code == cli(*command).code == 0
    for change, says in (
        ([*command, "--min-probability", "0.5"], "verdict rule"),
        (["-q", "predict", small_export, two, "-o", f"{tmp_path}/parts/"], "set of files"),
    ):
        refused = cli(*change)
        assert (refused.code, says in refused.err) == (2, True)


def test_merged_parts_say_where_their_photos_lie_and_replace_no_predictions(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, merged, table, mine = (tmp_path / name for name in ("parts", "all.jsonl", "all.csv", "mine.jsonl"))
    assert cli("-q", "predict", small_export, photos, "-o", f"{parts}/").code == 5
    assert cli("-q", "merge", parts, "-o", merged).code == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert cli("-q", "convert", merged, "--to", "csv", "-o", table).code == 5
    paths = [line.split(",")[0] for line in table.read_text().splitlines()[1:]]
    assert len(paths) == 10
    assert all(Path(path).is_file() for path in paths)
    assert cli("-q", "merge", parts, "-o", merged).code == 0  # its own file may be replaced
    assert cli("-q", "predict", small_export, photos / "a", "-o", mine).code == 0
    before, index = mine.read_text(), tmp_path / "index"
    assert cli("-q", "index", small_export, photos, "-o", index, "--part", "1/1").code == 5
    for command in (["merge", parts, "-o", mine], ["suggest", index, "-o", mine]):
        refused = cli("-q", *command)
        assert (refused.code, "holds predictions" in refused.err) == (2, True)
    assert mine.read_text() == before
    refused = cli("-q", "merge", index / "units", "-o", tmp_path / "x.csv")
    assert (refused.code, "of an index" in refused.err) == (2, True)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_ray_makes_the_same_parts(cli: Cli, small_export: Path, photos: Path, tmp_path: Path) -> None:
    command = ["-q", "predict", str(small_export), str(photos), "--part-size", "3", "--batch", "4",
               "--device", "cpu"]  # fmt: skip
    assert cli(*command, "-o", f"{tmp_path}/alone/").code == 5
    done = subprocess.run(
        [sys.executable, "-m", "refiner_cli", *command, "-o", f"{tmp_path}/ray/", "--engine", "ray"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    content = [[file.read_bytes() for file in sorted((tmp_path / name / "parts").iterdir())] for name in
               ("alone", "ray")]  # fmt: skip
    assert content[0] == content[1]
