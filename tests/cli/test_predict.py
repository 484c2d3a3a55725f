"""``refiner predict`` as its users meet it."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import refiner_cli
from refiner_cli.bench.predict import measure_throughput
from refiner_cli.inference.formats import read_rows
from tests.conftest import Cli, parse_rows
from tests.inference.check_kills import kill_at_random

Rows = list[dict[str, Any]]


def rows_of(file: Path) -> Rows:
    return parse_rows(file.read_text("utf-8"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of everything: kinds, modes, damage, in two levels."""
    folder = tmp_path_factory.mktemp("photos") / "all"
    (folder / "deeper").mkdir(parents=True)
    noise = Image.effect_noise((120, 90), 80)
    for name, mode in (
        ("a.jpg", "RGB"), ("b.png", "RGBA"), ("c.webp", "RGB"), ("d.gif", "P"), ("e.bmp", "RGB"),
        ("f.tif", "L"), ("g.jpeg", "CMYK"), ("deeper/a.jpg", "L"), ("deeper/p.PNG", "P"),
    ):  # fmt: skip
        noise.convert(mode).save(folder / name)
    Image.new("I;16", (50, 50), 900).save(folder / "h.png")
    exif = noise.getexif()
    exif[0x0112] = 6
    noise.save(folder / "turned.jpg", exif=exif)
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:900])
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("hello")
    (folder / "link.jpg").symlink_to("nowhere")
    (folder / ".hidden.jpg").touch()
    (folder / "notes.txt").touch()
    return folder


BAD = {"cut.jpg", "empty.jpg", "text.png", "link.jpg"}


def test_a_folder_of_everything_gives_a_row_for_each_file(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    outcome = cli("predict", small_export, photos, "-o", tmp_path / "out.jsonl", "--json", "--batch", 4)
    rows = rows_of(tmp_path / "out.jsonl")
    assert outcome.code == 5
    assert (outcome.json["images"], outcome.json["errors"], outcome.json["new"]) == (15, 4, 15)
    assert len({row["path"] for row in rows}) == len(rows) == 15
    assert {row["path"] for row in rows if row["status"] == "error"} == BAD
    assert all(bool(row["error"]) != bool(row["predictions"]) for row in rows)
    assert "cut.jpg" in outcome.err


def test_a_bad_image_leaves_its_neighbours_answers_alone(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    together = cli("-q", "predict", small_export, photos, "--batch", 8).out
    for line in together.splitlines():
        row = json.loads(line)
        if row["status"] == "ok" and row["path"] in {"d.gif", "deeper/a.jpg"}:
            alone = json.loads(cli("-q", "predict", small_export, photos / row["path"]).out)
            assert alone["predictions"][0]["score"] == pytest.approx(row["predictions"][0]["score"], abs=1e-3)


def test_the_same_command_again_goes_on_and_mixes_nothing(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    command = ("predict", small_export, photos, "-o", out, "--batch", 4)
    cli(*command)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]) + b"".join(lines[5:9]) + lines[10][:40])
    again = cli(*command, "--json")
    kept_errors = b"".join(lines[:3] + lines[5:9]).count(b'"status": "error"')
    assert again.json["new"] == 8 + kept_errors
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert cli(*command, "--json").json["new"] == 4  # the errors
    assert cli(*command, "--json", "--keep-errors").json["new"] == 0
    for change, named in (
        (["--top-k", 3], "top k"), (["--world", "open"], "vocabulary"),
        (["--precision", "bf16"], "precision"),
    ):  # fmt: skip
        refused = cli(*command, *change)
        assert refused.code == 2
        assert named in refused.err
        assert "--overwrite" in refused.err
    elsewhere = cli("predict", small_export, photos / "deeper", "-o", out)
    assert (elsewhere.code, "places" in elsewhere.err) == (2, True)
    assert cli("predict", small_export, photos / "deeper", "-o", out, "--overwrite").code == 0
    assert {row["path"] for row in rows_of(out)} == {"a.jpg", "p.PNG"}


def test_csv_and_parquet_say_what_json_lines_say(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for kind in ("jsonl", "csv", "parquet"):
        wide = ["--wide"] if kind == "csv" else []
        assert cli("-q", "predict", small_export, photos, "-o", tmp_path / f"out.{kind}", *wide).code == 5
    rows = rows_of(tmp_path / "out.jsonl")
    flat = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text("utf-8"))))
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    for nested, line, entry in zip(rows, flat, table, strict=True):
        assert nested["path"] == line["path"] == entry["path"]
        for rank, guess in enumerate(nested["predictions"], 1):
            assert entry[f"predictions.{rank}.seen"] is guess["seen"]
            assert (
                entry[f"predictions.{rank}.score"]
                == float(line[f"predictions.{rank}.score"])
                == guess["score"]
            )


@pytest.mark.parametrize("listed", [b"", b"\n\n"])
def test_an_empty_list_on_stdin_is_wrong_usage(
    cli: Cli, small_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bytes
) -> None:
    for words in (("predict", small_export, "-"), ("index", small_export, "-", "-o", tmp_path / "new")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
        outcome = cli(*words)
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err == "Error: There is no image in the list on stdin.\n"
        assert list(tmp_path.iterdir()) == []


def test_a_list_on_stdin_may_name_what_is_not_there(
    cli: Cli, small_export: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = f"{photos / 'a.jpg'}\n\n{photos / 'gone.jpg'}\n{photos / 'a.jpg'}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
    outcome = cli("-q", "predict", small_export, "-")
    assert outcome.code == 5
    found = [(Path(row["path"]).name, row["status"]) for row in map(json.loads, outcome.out.splitlines())]
    assert found == [("a.jpg", "ok"), ("gone.jpg", "error")]


def test_patterns_choose_and_a_folder_without_images_is_named(
    cli: Cli, small_export: Path, photos: Path
) -> None:
    outcome = cli("-q", "predict", small_export, photos, "--include", "*.jpg", "--exclude", "deeper",
                  "--exclude", "[cel]*")  # fmt: skip
    assert [row["path"] for row in parse_rows(outcome.out)] == ["a.jpg", "turned.jpg"]
    assert cli("predict", small_export, photos, "--include", "*.xyz").code == 2


def test_wrong_outputs_are_refused_before_the_model_is_loaded(cli: Cli, photos: Path) -> None:
    for options in (["-o", "out.xlsx"], ["--json"], ["--gallery", "page.html"]):
        assert cli("predict", "no-model", photos, *options).code == 2


def test_gallery_and_heatmaps_show_every_readable_image(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    cli("predict", small_export, photos, "-o", tmp_path / "out.csv", "--gallery", tmp_path / "page.html",
        "--heatmaps", tmp_path / "maps")  # fmt: skip
    page = (tmp_path / "page.html").read_text("utf-8")
    data = json.loads(page.partition("const rows = ")[2].partition(";\nconst")[0])
    assert len(data) == 15
    assert {path for path, _, picture, *_ in data if not picture} == BAD
    assert "http:" not in page
    assert "https:" not in page
    maps = {file.relative_to(tmp_path / "maps").as_posix() for file in (tmp_path / "maps").rglob("*.jpg")}
    ok = {row[0] for row in data} - BAD
    assert maps == {f"{path}.jpg" for path in ok}
    with Image.open(tmp_path / "maps" / "a.jpg.jpg") as sheet:
        assert sheet.size == (576, 576)


@pytest.fixture(scope="module")
def many(small_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for i, file in enumerate(sorted((small_demo / "images").rglob("*.jpg")) * 3):
        os.link(file, folder / f"{i:04}.jpg")
    (folder / "bad.jpg").write_bytes(b"nothing")
    return folder


def test_kill_9_costs_no_row_and_repeats_none(
    cli: Cli, small_export: Path, many: Path, tmp_path: Path
) -> None:
    cli("-q", "predict", small_export, many, "-o", tmp_path / "whole.jsonl", "--device", "cpu")
    torn = tmp_path / "torn.jsonl"
    assert kill_at_random(str(small_export), str(many), torn, 1, random.Random(3), 0) == 1
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(torn.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_throughput_is_measured_against_a_bare_loop(small_export: Path, many: Path) -> None:
    files = sorted(many.glob("0*.jpg"))[:40]
    found = measure_throughput(
        refiner_cli.load(small_export, device="cpu"), files, batch=8, workers=0, rounds=1
    )
    assert found.ratio == found.predict / found.bare > 0


def test_an_interrupt_ends_with_130_and_what_is_there_stays(
    cli: Cli, small_export: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0

    def listen(self: object, row: object) -> None:
        nonlocal seen
        seen += 1
        if seen == 20:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("refiner_cli.cli.prediction_rows.ProgressListener.row_written", listen)
        stopped = cli("predict", small_export, many, "-o", tmp_path / "out.jsonl", "--batch", 8)
    assert stopped.code == 130
    assert "the same command goes on from here" in stopped.err
    assert len(rows_of(tmp_path / "out.jsonl")) == 20
    again = cli("predict", small_export, many, "-o", tmp_path / "out.jsonl", "--batch", 8, "--json").json
    assert again["new"] == again["images"] - 20


@pytest.mark.skipif(os.name == "nt", reason="pipes break in another way there")
def test_a_reader_that_has_had_enough_is_no_error(small_export: Path, many: Path) -> None:
    command = [sys.executable, "-m", "refiner_cli", "-q", "predict", small_export, many, "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert json.loads(process.stdout.readline())["path"] == "0000.jpg"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=120) == 0


@pytest.fixture
def three(photos: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "three"
    folder.mkdir()
    for name in ("a.jpg", "b.png", "c.webp"):
        shutil.copy(photos / name, folder / name)
    return folder


def statuses(file: Path) -> dict[str, str]:
    rows = rows_of(file)
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row["status"] for row in rows}


def test_a_resumed_run_follows_what_happened_to_the_photos(
    cli: Cli, small_export: Path, three: Path, tmp_path: Path
) -> None:
    out, whole = tmp_path / "out.jsonl", (three / "b.png").read_bytes()
    command = ("-q", "predict", small_export, three, "-o", out, "--json")
    (three / "b.png").write_bytes(whole[:60])
    assert cli(*command).code == 5
    assert statuses(out) == {"a.jpg": "ok", "b.png": "error", "c.webp": "ok"}
    assert cli(*command, "--keep-errors").json["new"] == 0
    (three / "b.png").write_bytes(whole)  # mended
    Image.new("RGB", (50, 40), "red").save(three / "a.jpg")  # changed
    (three / "c.webp").unlink()
    (three / "d.jpg").write_bytes(whole)
    found = cli(*command)
    assert (found.code, found.json["new"], found.json["dropped"]) == (0, 3, 1)
    assert statuses(out) == {"a.jpg": "ok", "b.png": "ok", "d.jpg": "ok"}
    cli("-q", "predict", small_export, three, "-o", tmp_path / "fresh.jsonl")
    both = [{row["path"]: row["predictions"][0]["state"] for row in rows_of(file)} for file in
            (out, tmp_path / "fresh.jsonl")]  # fmt: skip
    assert both[0] == both[1]
    three.rename(tmp_path / "moved")
    assert cli("-q", "predict", small_export, tmp_path / "moved", "-o", out, "--json").json["new"] == 0
    (tmp_path / "moved").rename(three)
    outcome = cli("predict", small_export, tmp_path / "moved", "-o", out)
    assert outcome.code == 3  # the folder vanished: nothing is dropped
    assert len(statuses(out)) == 3


def test_no_output_destroys_another_or_an_input(
    cli: Cli, small_export: Path, three: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    before = {file: file.read_bytes() for file in three.iterdir()}
    for options in (
        ["--gallery", out], ["--gallery", f"{out}.run.json"], ["--heatmaps", out], ["--heatmaps", three],
        ["--heatmaps", tmp_path], ["--gallery", three / "a.jpg"],
    ):  # fmt: skip
        sources = [three, three / "a.jpg"]
        assert cli("predict", small_export, *sources, "-o", out, *options).code == 2, options
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "mine.jpg").touch()
    assert cli("predict", small_export, three, "-o", out, "--heatmaps", tmp_path / "else").code == 2
    assert {file: file.read_bytes() for file in three.iterdir()} == before


def test_maps_stay_in_their_folder_and_are_never_an_input(
    cli: Cli, small_export: Path, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = three / ("a" * 246 + ".jpg")
    shutil.copy(three / "a.jpg", long)
    (three / "below").mkdir()
    monkeypatch.chdir(three / "below")
    maps, out = three / "maps", tmp_path / "out.jsonl"
    before = set(three.rglob("*"))
    places = [three / "a.jpg", "../b.png", long]
    assert cli("-q", "predict", small_export, *places, "-o", out, "--heatmaps", maps).code == 0
    made = set(three.rglob("*")) - before
    assert all(file.is_relative_to(maps) for file in made)
    assert len([file for file in made if file.suffix == ".jpg"]) == len(rows_of(out)) == 3
    for options in (["--heatmaps", maps], []):  # the second does not know of the first
        cli("-q", "predict", small_export, three, "-o", tmp_path / f"{len(options)}.jsonl", *options)
        assert set(statuses(tmp_path / f"{len(options)}.jsonl")) == {"a.jpg", "b.png", "c.webp", long.name}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take only Unicode names")
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_names_that_are_not_utf8_are_taken_everywhere(
    cli: Cli, small_export: Path, three: Path, tmp_path: Path, suffix: str
) -> None:
    folder = three.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    shutil.copy(folder / "a.jpg", folder / os.fsdecode(b"\xff.jpg"))
    (folder / "\\xff.jpg").write_bytes(b"nothing")
    out = tmp_path / os.fsdecode(b"\xe9." + suffix.encode())
    command = ("predict", small_export, folder, "-o", out, "--gallery", tmp_path / os.fsdecode(b"\xe9.html"))
    outcome = cli(*command)
    assert outcome.code == 5
    assert "\\x5cxff.jpg" in outcome.err
    rows = {row["path"]: row["status"] for row in read_rows(out)}
    assert len(rows) == 5
    assert (rows["\\xff.jpg"], rows["\\x5cxff.jpg"]) == ("ok", "error")
    assert cli("-q", *command).code == 5
    assert len(list(read_rows(out))) == 5
    assert cli("predict", small_export, tmp_path / os.fsdecode(b"no\xe9")).code == 3


@pytest.mark.parametrize("option", ["--boxes", "--states", "--objects", "--pairs"])
def test_no_file_that_is_read_is_an_output(cli: Cli, tmp_path: Path, option: str) -> None:
    file = tmp_path / "given.csv"
    file.write_text("mine\n")
    refused = cli("-q", "predict", "tiny", tmp_path, option, file, "-o", file, "--overwrite")
    assert (refused.code, "is an input and an output" in refused.err) == (2, True)
    assert file.read_text() == "mine\n"
