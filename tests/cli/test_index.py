"""``refiner index`` and ``refiner search``: kept vectors, brought up to date, predicted from and searched."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from pathlib import Path

import pytest

import refiner_cli
from refiner_cli.inference.formats import read_rows
from refiner_cli.inference.index import Index
from tests.conftest import Cli, parse_rows
from tests.inference.check_index_kills import ORPHAN, compare_killed, contents


@pytest.fixture
def photos(small_demo: Path, tmp_path: Path) -> Path:
    """A dozen images in a folder of their own."""
    folder = tmp_path / "photos"
    folder.mkdir()
    files = sorted((small_demo / "images").rglob("*.jpg"))
    for number, file in enumerate(files[:: len(files) // 11]):
        shutil.copy(file, folder / f"{number:02d}.jpg")
    return folder


def test_rows_from_an_index_agree_with_direct_prediction(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    assert cli("-q", "index", small_export, photos, "-o", index, "--part-size", "5").code == 0
    direct = parse_rows(cli("-q", "predict", small_export, photos).out)
    kept = parse_rows(cli("-q", "predict", small_export, index).out)
    assert [row["path"] for row in kept] == [row["path"] for row in direct]
    for one, other in zip(kept, direct, strict=True):
        first, second = one["predictions"][0], other["predictions"][0]  # type: ignore[index]
        assert first["score"] == pytest.approx(second["score"], abs=0.02)
    out = tmp_path / "rows.csv"
    assert cli("-q", "predict", small_export, index, "-o", out, "--gallery", tmp_path / "page.html").code == 0
    shutil.rmtree(photos)  # the vectors are enough
    assert len(parse_rows(cli("-q", "predict", small_export, index).out)) == len(direct)


def test_an_index_stays_the_models_when_that_is_calibrated_again(
    cli: Cli, small_run: Path, photos: Path, tmp_path: Path
) -> None:
    run, index = tmp_path / "run", tmp_path / "index"
    shutil.copytree(small_run, run)
    some = ("--include", "0[0-3].jpg")
    assert cli("-q", "index", run, photos, *some, "-o", index).code == 0
    before = parse_rows(cli("-q", "predict", run, index).out)
    views = refiner_cli.load(run).model.calibration.tta_shifts
    chosen = (f"tta_shifts={views}", "hubness_strength=1.0", "wise_ft_alpha=0.25")
    settings = [part for one in chosen for part in ("--set", f"calibration.{one}")]
    assert cli("-q", "calibrate", run, *settings).code == 0
    direct = parse_rows(cli("-q", "predict", run, photos, *some).out)
    kept = parse_rows(cli("-q", "predict", run, index).out)
    for one, other, old in zip(kept, direct, before, strict=True):
        first, second, third = (row["predictions"][0] for row in (one, other, old))  # type: ignore[index]
        assert first["score"] == pytest.approx(second["score"], abs=0.02)
        assert first["score"] != pytest.approx(third["score"], abs=0.02)
        assert first["probability"] == pytest.approx(second["probability"], abs=0.01)
    for command in (["search", index, "apple"], ["suggest", index],
                    ["index", run, photos, *some, "-o", index]):  # fmt: skip
        assert cli("-q", *command).code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take only Unicode names")
def test_a_folder_whose_name_is_not_utf8_holds_an_index_and_rows(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    place = tmp_path / os.fsdecode(b"caf\xe9")
    place.mkdir()
    index, rows = place / "index", place / "rows.parquet"
    for _ in range(2):  # the second reads what the first wrote
        assert cli("-q", "index", small_export, photos, "-o", index).code == 0
        assert cli("-q", "predict", small_export, index, "-o", rows).code == 0
    assert [row["path"] for row in read_rows(rows)] == sorted(photo.name for photo in photos.iterdir())


def test_the_same_command_brings_an_index_up_to_date(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"

    def update() -> dict[str, object]:
        return cli("-q", "index", small_export, photos, "-o", index, "--part-size", "4", "--json").json

    first = update()
    assert first["encoded"] == first["images"] == len(list(photos.iterdir()))
    assert update() | {"schema": ""} == first | {"schema": "", "encoded": 0, "kept": first["images"]}
    before = {file: file.stat().st_mtime_ns for file in (index / "parts").iterdir()}
    shutil.copy(photos / "00.jpg", photos / "zz.jpg")
    changed = update()
    assert (changed["encoded"], changed["kept"], changed["dropped"]) == (1, first["images"], 0)
    assert {file: file.stat().st_mtime_ns for file in before} == before  # nothing else is touched
    shutil.copy(photos / "03.jpg", photos / "00.jpg")
    (photos / "01.jpg").unlink()
    (photos / "02.jpg").write_bytes(b"no image")
    done = cli("-q", "index", small_export, photos, "-o", index, "--json")
    assert done.code == 5
    assert (done.json["encoded"], done.json["dropped"], done.json["errors"]) == (2, 1, 1)
    fresh = tmp_path / "fresh"
    assert cli("-q", "index", small_export, photos, "-o", fresh).code == 5
    assert contents(index) == contents(fresh)


def test_changes_that_do_not_fit_one_part_leave_each_image_once(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    index, fresh = tmp_path / "index", tmp_path / "fresh"
    command = ("-q", "index", small_export, photos, "--part-size", "4", "-o")
    assert cli(*command, index).code == 0
    shutil.copy(photos / "00.jpg", photos / "-new.jpg")  # all others change, so parts are rewritten twice
    for file in photos.iterdir():
        os.utime(file, (1, 1))
    assert cli(*command, index).code == 0
    assert cli(*command, fresh).code == 0
    assert contents(index) == contents(fresh)


def test_predicting_can_keep_the_index_that_refiner_index_would_write(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "broken.jpg").write_bytes(b"no image")
    whole, kept, rows = tmp_path / "whole", tmp_path / "kept", tmp_path / "rows.jsonl"
    batch = ("--batch", "4", "--workers", "0")
    predict = ("-q", "predict", small_export, photos, *batch, "--keep-index", kept)
    assert cli("-q", "index", small_export, photos, "-o", whole, *batch).code == 5
    plain = cli("-q", "predict", small_export, photos, *batch).out
    assert cli(*predict, "-o", rows).code == 5
    assert rows.read_text() == plain
    assert contents(kept) == contents(whole)
    assert Index.open(kept).info.model == Index.open(whole).info.model

    shutil.copy(photos / "00.jpg", photos / "zz.jpg")
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[:5]))  # as after a kill: some rows, and an index that lacks an image
    assert cli("-q", "index", small_export, photos, "-o", whole, *batch).code == 5
    assert cli(*predict, "-o", rows).code == 5
    assert sorted(rows.read_text().splitlines()) == sorted(
        cli("-q", "predict", small_export, photos, *batch).out.splitlines()
    )
    assert contents(kept) == contents(whole)


def test_an_index_that_can_not_be_kept_is_said_before_the_work(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    index, file = tmp_path / "index", tmp_path / "file"
    file.write_text("")
    assert cli("-q", "index", small_export, photos, "-o", index).code == 0
    (tmp_path / "other").mkdir()
    for command, says in (
        (["predict", small_export, photos, "--keep-index", photos], "is an input and an output"),
        (["predict", small_export, photos, "--keep-index", file], "is not a folder"),
        (["predict", small_export, photos, "--keep-index", file / "x"], "cannot be written"),
        (["predict", small_export, index, "--keep-index", tmp_path / "new"], "needs images, not an index"),
        (["predict", small_export, photos / "00.jpg", "--keep-index", index], "holds images of"),
        (["predict", small_export, photos, "--keep-index", "k", "--heatmaps", "h"], "exclude each other"),
        (["predict", small_export, photos, "--keep-index", "k", "--boxes", "b.json"], "no boxes"),
        (["index", small_export, photos, "-o", file / "x"], "cannot be written"),
        (["index", small_export, photos, "-o", "/proc/self/index"], "cannot be written"),
    ):
        done = cli("-q", *command)
        assert done.code == 2, done.err
        assert says in done.err


def test_search_ranks_images_by_composition_state_object_and_likeness(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    assert cli("-q", "index", small_export, photos, "-o", index).code == 0
    for query in (["burnt apple"], ["state:burnt", "object:apple"], ["sunset"], ["--", "apple", "-burnt"]):
        hits = parse_rows(cli("-q", "search", index, "--top", "4", *query).out)
        assert [hit["rank"] for hit in hits] == [1, 2, 3, 4]
        scores = [hit["score"] for hit in hits]
        assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    best = parse_rows(cli("-q", "search", index, "--like", photos / "04.jpg", "--top", "1").out)
    assert best[0]["path"] == "04.jpg"
    told = cli("-q", "search", index, "burnt", "--json", "--top", "2").json
    assert (told["schema"], told["query"], len(told["hits"])) == ("refiner.search/1", "state:burnt", 2)
    assert "margin" in cli("-q", "search", index, "burnt", "--format", "table").out


def test_search_leaves_out_what_lies_below_a_margin_and_writes_a_gallery(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    index, page = tmp_path / "index", tmp_path / "page.html"
    assert cli("-q", "index", small_export, photos, "-o", index).code == 0
    everything = parse_rows(cli("-q", "search", index, "burnt apple").out)
    limit = everything[2]["margin"]
    found = cli("-q", "search", index, "burnt apple", "--min-margin", limit, "--gallery", page)
    # Printed margins are rounded, so the third may be below its own.
    assert parse_rows(found.out) in (everything[:3], everything[:2])
    text = page.read_text("utf-8")
    assert "Search: burnt apple" in text
    assert f"1. score {everything[0]['score']:.2f}" in text
    assert 'value="given"' in text
    for wrong, says in (
        (photos / "00.jpg", "does not end in"),
        (tmp_path / "index.html" / "x.html", "cannot be written"),
    ):
        (tmp_path / "index.html").touch()
        done = cli("-q", "search", index, "apple", "--gallery", wrong)
        assert done.code == 2
        assert says in done.err


def damage_part(index: Path) -> None:
    file = next((index / "parts").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-7])


def remove_part(index: Path) -> None:
    next((index / "parts").glob("*.parquet")).unlink()


def tear_json(index: Path) -> None:
    (index / "index.json").write_text((index / "index.json").read_text()[:-20])


def name_elsewhere(index: Path) -> None:
    content = json.loads((index / "index.json").read_text())
    content["parts"][0]["name"] = "../../00000000-aaaaaaaa"
    (index / "index.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_part, "damaged or cut short"),
        (remove_part, "is missing"),
        (tear_json, "is damaged"),
        (name_elsewhere, "is damaged"),
    ],
)
def test_a_damaged_index_is_one_sentence(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path, damage: object, says: str
) -> None:
    index = tmp_path / "index"
    assert cli("-q", "index", small_export, photos, "-o", index).code == 0
    damage(index)  # type: ignore[operator]
    for command in (["search", index, "apple"], ["predict", small_export, index]):
        done = cli("-q", *command)
        assert done.code == 3
        assert says in done.err
        assert "Traceback" not in done.err


def test_mistakes_are_wrong_usage(cli: Cli, small_export: Path, photos: Path, tmp_path: Path) -> None:
    index, empty = tmp_path / "index", tmp_path / "empty"
    empty.mkdir()
    assert cli("-q", "index", small_export, photos, "-o", index).code == 0
    hollow = tmp_path / "hollow"  # as a process leaves it that was killed before its first part
    shutil.copytree(index, hollow)
    content = json.loads((hollow / "index.json").read_text())
    (hollow / "index.json").write_text(json.dumps({**content, "parts": []}))
    assert "'sunset'" in cli("search", index, "sunset").err
    words = tmp_path / "words.txt"
    words.write_text("apple\n")
    other = ["predict", "tiny", index, "--states", words, "--objects", words]
    for command, says in (
        (other, "was made with another model"),
        (["search", index, "--", "-apple"], "only excludes"),
        (["search", index, "?!"], "holds no word"),
        (["search", hollow, "apple"], "holds no image"),
        (["suggest", hollow], "holds no image"),
        (["predict", small_export, hollow], "holds no image"),
        (["search", index], "Give either a QUERY or --like"),
        (["search", photos, "apple"], "is not an index"),
        (["index", small_export, empty, "-o", tmp_path / "new"], "There is no image in"),
        (["index", small_export, photos / "00.jpg", "-o", index], "holds images of"),
        (["index", small_export, photos, "-o", photos], "is not an index"),
        (["predict", small_export, index, photos], "the only PATH"),
    ):
        done = cli("-q", *command)
        assert done.code == (3 if command[1] == photos else 2), done.err
        assert says in done.err


def test_an_index_that_was_killed_is_finished_by_the_same_command(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    def run(command: list[str]) -> None:
        assert cli(*command).code == 0

    (tmp_path / "torn" / "parts").mkdir(
        parents=True
    )  # of a process that was killed before it wrote index.json
    hits, equal = compare_killed(small_export, photos, tmp_path, 1, random.Random(1), run)
    assert hits
    assert equal
    assert not (tmp_path / "torn" / "parts" / ORPHAN).exists()


def test_suggest_lists_images_and_writes_them_for_labelling(
    cli: Cli, small_export: Path, photos: Path, tmp_path: Path
) -> None:
    index, page, rows = tmp_path / "index", tmp_path / "page.html", tmp_path / "next.jsonl"
    assert cli("-q", "index", small_export, photos, "-o", index).code == 0
    found = parse_rows(cli("-q", "suggest", index, "--count", "4").out)
    assert [row["rank"] for row in found] == [1, 2, 3, 4]
    assert "undecided" in cli("-q", "suggest", index, "--count", "9", "--format", "table").out
    done = cli("-q", "suggest", index, "--count", "4", "-o", rows, "--gallery", page, "--json")
    assert done.json["images"] == found == parse_rows(rows.read_text("utf-8"))
    assert f"1. {found[0]['note']}" in page.read_text("utf-8").replace("\\u0027", "'")
    assert cli("-q", "convert", rows, "--to", "label-studio", "-o", tmp_path / "studio").code == 0
    labels = tmp_path / "labels.csv"
    labels.write_text("path,state,object\n" + "".join(f"photos/{row['path']},a,b\n" for row in found))
    later = parse_rows(cli("-q", "suggest", index, "--count", "4", "--labelled", labels).out)
    assert not {row["path"] for row in later} & {row["path"] for row in found}  # type: ignore[misc]
    assert cli("-q", "suggest", index, "-o", tmp_path / "next.csv").code == 2
