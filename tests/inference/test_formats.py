"""Rows in files that people open: every text comes back, and none acts on what shows it."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refiner_cli.errors import UsageError
from refiner_cli.inference.formats import FORMATS, ImageRow, format_of, json_line
from refiner_cli.inference.recogniser import Composition, Prediction, Primitive
from refiner_cli.inference.scan import FileVersion, row_name

NASTY = [
    "=1+1", "+1", "-1", "@x", "'=1", "''=1", "'x", "\t=1", "\rx", "a\rb", "a\nb", 'a"b,c', "\x1b[31m",
    "\x9b2J", "\u202egpj.exe", "\u2028", "a\x00b", "\\x41", "\\u0041", "caf\udce9.jpg",
]  # fmt: skip
text = st.one_of(st.sampled_from(NASTY), st.text(max_size=12))


def row(path: str, error: str = "", label: str = "old") -> dict[str, Any]:
    made = Prediction((Composition(label, "car", -3.5, 0.25, seen=True),), (Primitive(label, 0.5),), ())
    return ImageRow(
        row_name(path), None if error else made, error, FileVersion(7, "2026-01-02T03:04:05.000006Z")
    ).to_json()


@pytest.mark.parametrize("suffix", list(FORMATS))
@settings(max_examples=40, deadline=None)
@given(path=text.filter(bool), error=text)
def test_rows_come_back_as_they_were(tmp_path_factory: Any, suffix: str, path: str, error: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    file = tmp_path_factory.mktemp("rows") / f"out{suffix}"
    rows = [row(path), row("b.jpg", row_name(error)), row(path, label="'=old")]
    format_of(file, wide=True).write(file, rows, 3)
    assert list(format_of(file).read(file)) == rows


@pytest.mark.parametrize("suffix", list(FORMATS))
def test_what_a_source_says_comes_back_as_it_was(tmp_path: Path, suffix: str) -> None:
    said = {name: name for name in (*NASTY[:-1], "caf\\u00e9", "C:\\u0022x", "\\\\u0022")}
    rows = [row("a.jpg") | {"inputs": said}]
    file = tmp_path / f"out{suffix}"
    format_of(file, wide=True, inputs=True).write(file, rows, 1)
    assert list(format_of(file).read(file)) == rows


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("nasty", NASTY)
def test_nothing_in_a_row_acts_on_a_terminal_or_a_spreadsheet(tmp_path: Path, nasty: str, wide: bool) -> None:
    rows = [row(nasty), row("b.jpg", row_name(nasty))]
    file = tmp_path / "out.csv"
    format_of(file, wide=wide).write(file, rows, 1)
    content = file.read_bytes().decode()
    lines = [json_line(one) for one in rows]
    for shown in (content, *lines):
        assert not [
            c for c in shown if unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"} and c not in "\r\n\t"
        ]
    for cells in csv.reader(io.StringIO(content, newline="")):
        assert not [
            cell for cell in cells if cell[:1] in set("=+@\t\r") or (cell[:1] == "-" and cell != "-3.5")
        ]
    assert all(len(line.splitlines()) == 1 for line in lines)


def test_a_carriage_return_in_a_name_tears_no_row(tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    format_of(file).write(file, [row("x\ry.jpg"), row("z.jpg")], 1)
    with file.open(newline="") as stream:
        assert [one["path"] for one in csv.DictReader(stream)] == ["x\ry.jpg", "z.jpg"]
    assert file.read_bytes().count(b"\r") == 1


def test_an_unknown_format_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"\.jsonl, \.csv, \.parquet"):
        format_of(Path("out.xlsx"))


def test_a_row_names_the_file_it_was_made_from() -> None:
    value = json.loads(json_line(row("a.jpg")))
    assert (value["size"], value["modified"]) == (7, "2026-01-02T03:04:05.000006Z")
