"""What ``refiner predict`` shows: tables, lines, a summary."""

from __future__ import annotations

import csv
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from refiner_cli.cli.prediction_rows import TableLines, choose_rows
from refiner_cli.errors import UsageError
from refiner_cli.inference.formats import ImageRow
from refiner_cli.inference.recogniser import Composition, Prediction
from tests.conftest import Cli, parse_rows

LABELS = "states.txt", "objects.txt"


@pytest.fixture
def zero_shot(small_demo: Path, tmp_path: Path) -> list[object]:
    """Arguments of a prediction that needs no training: two photos, one of them unreadable."""
    (tmp_path / "photos").mkdir()
    photo = next((small_demo / "images").rglob("*.jpg"))
    (tmp_path / "photos" / "good.jpg").write_bytes(photo.read_bytes())
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"nothing")
    for name, words in zip(LABELS, ("wet\nburnt\n", "apple\ntie\n"), strict=True):
        (tmp_path / name).write_text(words)
    states, objects = (tmp_path / name for name in LABELS)
    return ["predict", "tiny", tmp_path / "photos", "--states", states, "--objects", objects]


def guess(state: str, probability: float) -> Composition:
    return Composition(state, "apple", 1.0, probability, seen=False)


def drawn(width: int, *rows: ImageRow) -> list[str]:
    stream = io.StringIO()
    table = TableLines(stream, width, 14)
    for row in rows:
        table.write(row)
    return stream.getvalue().splitlines()


ROW = ImageRow("a.jpg", Prediction((guess("sliced", 0.5), guess("wet", 0.25), guess("old", 0.125)), (), ()))


def test_a_line_has_path_composition_probability_and_the_next_two() -> None:
    head, line = drawn(80, ROW)
    assert head.split() == ["image", "composition", "prob.", "next"]
    assert line.split("  ") == [*line.split("  ")[:-1], "wet apple 25.0%, old apple 12.5%"]
    assert line.startswith("a.jpg ")
    assert "sliced apple" in line
    assert " 50.0%" in line
    assert head.index("next") == line.index("wet apple")


@pytest.mark.parametrize("width", [30, 50, 80, 120])
def test_nothing_is_cut_off_in_any_width(width: int) -> None:
    long = ImageRow("deep/" * 12 + "\u5199\u771f.jpg", ROW.prediction)
    lines = drawn(width, ROW, long, ImageRow("\x1b[31m.jpg", None, "It cannot be read."))
    text = "\n".join(lines)
    assert long.path in text
    assert " ".join(text.split()).count("wet apple 25.0%, old apple 12.5%") == 2
    assert text.count("wet apple 25.0%") == text.count("old apple 12.5%") == 2  # no guess in two lines
    assert "It cannot be read." in text
    assert "\x1b" not in text
    if width >= 50:
        assert all(cell_len(line) <= width for line in lines if "deep/" not in line)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("csv", Path("x.jsonl"), False), "contradicts the output x.jsonl"),
        (("parquet", None, False), "not written to stdout"),
        ((None, Path("x.parquet"), True), "CSV only"),
        (("table", None, True), "CSV only"),
    ],
)
def test_what_does_not_fit_together_is_named(arguments: tuple[None, Path | None, bool], says: str) -> None:
    asked, out, wide = arguments
    with pytest.raises(UsageError, match=says):
        choose_rows(asked, out, wide=wide)


def test_without_a_terminal_rows_are_json_lines_and_csv_on_request(cli: Cli, zero_shot: list[object]) -> None:
    lines = parse_rows(cli("-q", *zero_shot).out)
    rows = list(csv.DictReader(io.StringIO(cli("-q", *zero_shot, "--format", "csv").out)))
    wide = list(csv.DictReader(io.StringIO(cli("-q", *zero_shot, "--format", "csv", "--wide").out)))
    assert [row["path"] for row in lines] == ["bad.jpg", "good.jpg"]
    for row, short, full in zip(lines, rows, wide, strict=True):
        best = row["predictions"][0] if row["predictions"] else {"state": "", "probability": ""}
        assert (short["status"], short["state"]) == (row["status"], best["state"])
        assert short["probability"] == full["predictions.1.probability"] == str(best["probability"])


def test_a_table_names_what_cannot_be_read_once(cli: Cli, zero_shot: list[object]) -> None:
    outcome = cli(*zero_shot, "--format", "table")
    assert outcome.code == 5
    assert outcome.out.count("cannot be read") == 1
    assert "cannot be read" not in outcome.err
    assert outcome.err.rstrip().splitlines()[-1].startswith("2 images, ")


def test_the_last_line_says_how_many_how_fast_where_and_what_next(
    cli: Cli, zero_shot: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "rows.csv"
    first = cli(*zero_shot, "-o", out).err.splitlines()[-1]
    assert first.startswith("2 images, ")
    assert f"/s, 1 could not be read, rows in {out}; next: " in first
    assert "--gallery" in first
    again = cli(*zero_shot, "-o", out, "--gallery", tmp_path / "page.html").err.splitlines()[-1]
    assert again.startswith("2 images, 1 already done, 1 new at ")
    assert again.endswith(f"next: open {tmp_path / 'page.html'} in a browser")
    done = cli(*zero_shot, "-o", out, "--keep-errors").err.splitlines()[-1]
    assert done.startswith("2 images, 2 already done, 1 could not be read, rows in ")
    (tmp_path / "photos" / "bad.jpg").unlink()
    dropped = cli(*zero_shot, "-o", out).err.splitlines()[-1]
    assert "1 row dropped, their images are gone" in dropped


def test_a_finished_output_gets_its_gallery_and_missing_heatmaps(
    cli: Cli, small_export: Path, small_demo: Path, tmp_path: Path
) -> None:
    files = sorted((small_demo / "images").rglob("*.jpg"))[:3]
    command = ["-q", "predict", small_export, *files, "-o", tmp_path / "rows.jsonl", "--json"]
    cli(*command)
    before = (tmp_path / "rows.jsonl").read_bytes()
    extra = ["--gallery", tmp_path / "page.html", "--heatmaps", tmp_path / "maps"]
    for missing in (3, 1, 0):
        outcome = cli(*command, *extra)
        assert (outcome.code, outcome.json["new"]) == (0, 0)
        maps = sorted((tmp_path / "maps").rglob("*.jpg"))
        assert len(maps) == 3
        if missing == 3:
            kept = {file: file.stat().st_mtime_ns for file in maps[1:]}
            maps[0].unlink()
    assert {file: file.stat().st_mtime_ns for file in maps[1:]} == kept
    assert (tmp_path / "page.html").is_file()
    assert (tmp_path / "rows.jsonl").read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_rows_go_where_stdout_goes_and_a_terminal_gets_a_table(
    zero_shot: list[object], tmp_path: Path
) -> None:
    """With progress bars on the terminal, too: they must not take the rows to themselves."""
    command = [sys.executable, "-m", "refiner_cli", *map(str, zero_shot), "--device", "cpu"]
    shown = {}
    for piped in (True, False):
        ours, theirs = pty.openpty()
        with (tmp_path / f"{piped}").open("wb") as file:
            done = subprocess.Popen(command, stdout=file if piped else theirs, stderr=theirs, stdin=theirs)
        os.close(theirs)
        shown[piped] = read_all(ours)
        assert done.wait(120) == 5
    rows = parse_rows((tmp_path / "True").read_text())
    assert [row["path"] for row in rows] == ["bad.jpg", "good.jpg"]
    assert b"good.jpg" not in shown[True]
    assert b"composition" in shown[False]
    assert b"good.jpg" in shown[False]


def read_all(handle: int) -> bytes:
    """Everything that a terminal shows until its last program ends."""
    found = b""
    while True:
        try:
            part = os.read(handle, 4096)
        except OSError:  # how Linux says it
            part = b""
        if not part:
            os.close(handle)
            return found
        found += part
