"""Outputs that survive kills, and go on only with what fits."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refiner_cli.errors import RefinerError, UsageError
from refiner_cli.inference.columns import (
    IMAGE_FIELDS,
    RowDict,
    flatten_row,
    nest_row,
    short_columns,
    shorten_row,
    wide_columns,
)
from refiner_cli.inference.earlier_rows import EarlierRows
from refiner_cli.inference.formats import ImageRow, format_of, read_rows
from refiner_cli.inference.output import Output, RowCount
from refiner_cli.inference.recogniser import Composition, Prediction, Primitive
from refiner_cli.inference.scan import FileVersion, name_digest

HEADER = {"model": "m", "vocabulary": "v", "places": ["/photos"], "batch": 8}


def row(name: str, error: str = "") -> ImageRow:
    if error:
        return ImageRow(name, None, error)
    made = Prediction(
        (Composition("old", "car", 21.25, 0.1 + 0.2, seen=True),
         Composition("new", "car", -3.5, 1e-12, seen=False)),
        (Primitive("old", 0.75), Primitive("new", 0.25)),
        (Primitive("car", 1.0),),
    )  # fmt: skip
    return ImageRow(name, made)


def write(output: Output, *rows: ImageRow) -> None:
    with output.writing() as sink:
        for one in rows:
            sink.write(one)


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_every_kind_gives_the_same_rows_back(tmp_path: Path, kind: str) -> None:
    values = [row('a, "b"\n\u00fc.jpg').to_json(), row("c.jpg", 'It is "torn",\nreally.').to_json()]
    file = tmp_path / f"out{kind}"
    format_of(file, wide=True).write(file, values, 3)
    assert list(read_rows(tmp_path / f"out{kind}")) == values
    assert [nest_row(flatten_row(value)) for value in values] == values
    assert set(flatten_row(values[0])) < set(wide_columns(3))


def without_what_is_left_out(value: RowDict) -> RowDict:
    """A row as the short layout gives it back."""
    kept = [one | {"score": None} for one in value["predictions"][:3]]
    return value | {"predictions": kept, "states": [], "objects": []}


@pytest.mark.parametrize("top_k", [1, 2, 3, 1000])
def test_a_short_csv_has_few_columns_and_gives_its_predictions_back(tmp_path: Path, top_k: int) -> None:
    made = [Composition(f"s{i}", "car", 1.0, 0.5**i, seen=bool(i % 2)) for i in range(top_k)]
    best = ImageRow("a.jpg", Prediction(tuple(made), (Primitive("s0", 1.0),), ())).to_json()
    values = [best, row("c.jpg", "torn").to_json()]
    file = tmp_path / "out.csv"
    format_of(file).write(file, values, top_k)
    header = file.read_text("utf-8").splitlines()[0].split(",")
    assert header == short_columns(top_k)
    assert header[:7] == ["path", "status", "error", "state", "object", "probability", "seen"]
    assert len(header) == len(set(header)) == len(IMAGE_FIELDS) + 4 * min(top_k, 3)
    assert list(read_rows(file)) == [without_what_is_left_out(value) for value in values]
    assert set(shorten_row(best)) == set(header)


def test_rows_of_two_layouts_are_not_mixed(tmp_path: Path) -> None:
    for wide in (False, True):
        output = Output(tmp_path / "out.csv", 2, wide=wide)
        if wide:
            with pytest.raises(UsageError, match=r"another layout \(short, now wide\)"):
                output.prepare(HEADER, overwrite=False)
            output.prepare(HEADER, overwrite=True)
        else:
            output.prepare(HEADER, overwrite=False)
        write(output, row("a.jpg"))
        output.finish(HEADER)
    assert "predictions.2.score" in (tmp_path / "out.csv").read_text("utf-8")


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_a_second_run_adds_what_is_missing(tmp_path: Path, name: str) -> None:
    for names in (["a.jpg", "b.jpg"], ["c.jpg"]):
        output = Output(tmp_path / name, 2)
        output.prepare(HEADER, overwrite=False)
        done = set(output.earlier().versions)
        assert not done & {name_digest(one) for one in names}
        write(output, *map(row, names))
        count = output.finish(HEADER)
    assert count == RowCount(3, 0)
    assert [value["path"] for value in read_rows(tmp_path / name)] == ["a.jpg", "b.jpg", "c.jpg"]
    assert json.loads((tmp_path / f"{name}.run.json").read_text())["complete"]
    assert {file.name for file in tmp_path.iterdir()} == {name, f"{name}.run.json"}


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 1000), tail=st.sampled_from([b"", b"{", b"\0\0\0\n", b'{"path": 3}\n']))
def test_wherever_a_kill_cuts_whole_rows_stay(tmp_path_factory: Any, cut: int, tail: bytes) -> None:
    output = Output(tmp_path_factory.mktemp("out") / "out.jsonl", 2)
    output.prepare(HEADER, overwrite=False)
    write(output, row("\u00fc.jpg"), row("b.jpg", "torn"))
    content = output.file.read_bytes()
    left = content[: cut % (len(content) + 1)]
    output.file.write_bytes(left + tail)
    output.prepare(HEADER, overwrite=False)
    whole = left[: left.rfind(b"\n") + 1]
    assert output.file.read_bytes() == whole
    assert len(output.earlier().versions) == whole.count(b"\n")


@pytest.mark.parametrize("key", ["model", "vocabulary", "places"])
def test_rows_of_different_makes_are_not_mixed(tmp_path: Path, key: str) -> None:
    output = Output(tmp_path / "out.jsonl", 2)
    output.prepare(HEADER, overwrite=False)
    write(output, row("a.jpg"))
    with pytest.raises(UsageError, match=key):
        output.prepare(HEADER | {key: "other"}, overwrite=False)
    assert len(output.earlier().versions) == 1
    output.prepare(HEADER | {key: "other"}, overwrite=True)
    assert not output.earlier().versions


def test_the_batch_of_the_first_run_stays(tmp_path: Path) -> None:
    output = Output(tmp_path / "out.jsonl", 2)
    output.prepare(HEADER, overwrite=False)
    assert output.prepare(HEADER | {"batch": 64}, overwrite=False)["batch"] == 8


def test_a_file_of_unknown_origin_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("mine\n")
    with pytest.raises(UsageError, match="--overwrite"):
        Output(tmp_path / "out.jsonl", 2).prepare(HEADER, overwrite=False)
    assert (tmp_path / "out.jsonl").read_text() == "mine\n"


def test_journals_of_killed_runs_become_one_and_no_row_counts_twice(tmp_path: Path) -> None:
    first = Output(tmp_path / "out.csv", 2)
    first.prepare(HEADER, overwrite=False)
    write(first, row("a.jpg"))
    second = Output(tmp_path / "out.csv", 2)
    second.prepare(HEADER, overwrite=False)
    write(second, row("b.jpg", "torn"))
    assert len(second.journals()) == 2
    journal = second.journal.read_bytes()
    assert set(second.earlier().versions) == {name_digest("a.jpg"), name_digest("b.jpg")}
    assert second.finish(HEADER) == RowCount(2, 1)
    second.journal.write_bytes(journal)  # as if killed before it was removed
    again = Output(tmp_path / "out.csv", 2)
    again.prepare(HEADER, overwrite=False)
    assert again.finish(HEADER) == RowCount(2, 1)
    assert not again.journals()


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    output = Output(tmp_path / "out.jsonl", 2)
    with output.locked(), pytest.raises(RefinerError, match="Another process"), output.locked():
        pass
    with output.locked():
        pass


def test_the_lock_keeps_its_file_so_that_it_can_never_let_two_in(tmp_path: Path) -> None:
    output = Output(tmp_path / "out.jsonl", 2)
    with output.locked():
        inode = output.lock.stat().st_ino
    assert output.lock.stat().st_ino == inode


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
@pytest.mark.parametrize("harm", ["moved", "deleted", "replaced", "truncated", "appended"])
def test_rows_that_others_take_away_while_they_are_written_are_an_error(
    tmp_path: Path, name: str, harm: str
) -> None:
    output = Output(tmp_path / name, 2)
    output.prepare(HEADER, overwrite=False)
    with pytest.raises(RefinerError, match="while rows were written"), output.writing() as journal:
        journal.write(row("a.jpg"))
        file = journal.file
        if harm == "moved":
            file.rename(tmp_path / "elsewhere")
        elif harm == "deleted":
            file.unlink()
        elif harm == "replaced":
            (tmp_path / "other").write_bytes(file.read_bytes())
            (tmp_path / "other").replace(file)
        else:
            with file.open("ab") as stream:
                stream.truncate(3) if harm == "truncated" else stream.write(b"x")
        journal.write(row("b.jpg"))
    assert not json.loads(output.sidecar.read_text())["complete"]


def test_an_output_without_all_rows_is_not_complete(tmp_path: Path) -> None:
    output = Output(tmp_path / "out.jsonl", 2)
    output.prepare(HEADER, overwrite=False)
    write(output, row("a.jpg"))
    earlier = output.earlier()
    for found, before in (({name_digest("b.jpg")}, None), (set(), earlier)):
        output.file.write_text("" if before else output.file.read_text())
        with pytest.raises(RefinerError, match="no longer in it"):
            output.finish(HEADER, found, before)
    assert not json.loads(output.sidecar.read_text())["complete"]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_the_later_of_two_rows_counts_and_stays_alone(tmp_path: Path, name: str) -> None:
    for rows in ([row("a.jpg", "torn"), row("b.jpg")], [row("a.jpg")]):
        output = Output(tmp_path / name, 2)
        output.prepare(HEADER, overwrite=False)
        write(output, *rows)
        count = output.finish(HEADER)
    assert count == RowCount(2, 0)
    assert [(value["path"], value["status"]) for value in read_rows(tmp_path / name)] == [
        ("b.jpg", "ok"),
        ("a.jpg", "ok"),
    ]


def test_rows_of_images_that_are_gone_are_dropped_and_all_others_stay(tmp_path: Path) -> None:
    output = Output(tmp_path / "out.jsonl", 2)
    output.prepare(HEADER, overwrite=False)
    write(output, row("a.jpg"), row("gone.jpg"), row("elsewhere.jpg"))
    count = output.finish(HEADER, {name_digest("a.jpg")}, None, lambda name: name == "gone.jpg")
    assert count == RowCount(2, 0, dropped=1)
    assert [value["path"] for value in read_rows(output.file)] == ["a.jpg", "elsewhere.jpg"]


def test_size_and_modification_time_decide_whether_a_row_stays() -> None:
    then, now, unknown = FileVersion(7, "2026-01-01"), FileVersion(7, "2026-01-02"), FileVersion()
    earlier = EarlierRows()
    for name, version, error in (("a", then, ""), ("bad", then, "torn"), ("old", unknown, "")):
        earlier.add(dataclasses.replace(row(name, error), version=version).to_json())
    assert earlier.cover("a", then, keep_errors=False)
    assert not earlier.cover("a", now, keep_errors=False)
    assert earlier.cover("a", unknown, keep_errors=False)  # out of reach today
    assert earlier.cover("old", now, keep_errors=False)  # written before rows named their file's version
    assert not earlier.cover("bad", then, keep_errors=False)
    assert earlier.cover("bad", then, keep_errors=True)
    assert not earlier.cover("bad", now, keep_errors=True)
    assert not earlier.cover("new", now, keep_errors=True)


def test_a_folder_that_moved_is_recognised_by_its_images(tmp_path: Path) -> None:
    for name, side in (("there", "x"), ("other", "xyz")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_text(side)
    output = Output(tmp_path / "out.jsonl", 2)
    header = HEADER | {"places": [str(tmp_path / "gone")]}
    output.prepare(header, overwrite=False)
    write(output, dataclasses.replace(row("a.jpg"), version=FileVersion(1, "2026-01-01")))
    with pytest.raises(UsageError, match="places"):
        output.prepare(HEADER | {"places": ["other"]}, overwrite=False, folder=tmp_path / "other")
    now = [str(tmp_path / "there")]
    found = output.prepare(HEADER | {"places": now}, overwrite=False, folder=tmp_path / "there")
    assert found["places"] == now


SCHEMA = '"schema": "refiner.predictions/1"'


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "[" * 100_000, f'{{{SCHEMA}, "header": 3}}', f'{{{SCHEMA}, "header": {{"batch": 1e30}}}}',
     f'{{{SCHEMA}, "header": {{"batch": true}}}}'],
)  # fmt: skip
def test_a_damaged_header_is_one_sentence(tmp_path: Path, content: str) -> None:
    output = Output(tmp_path / "out.jsonl", 2)
    output.sidecar.write_text(content)
    with pytest.raises(UsageError, match="is damaged"):
        output.prepare(HEADER, overwrite=False)
