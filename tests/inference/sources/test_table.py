"""CSV tables of any usual separator."""

from __future__ import annotations

from pathlib import Path

import pytest

from refiner_cli.data.delimiter import delimiter_of
from refiner_cli.inference.sources.table import is_path_column, json_value
from tests.conftest import Cli


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [
        ("path,note\n", ","), ("path;note\n", ";"), ("note\tpath\n", "\t"), ("path\n", ","), ("", ","),
        ('"a;b;c",path\n', ","), ("Path;a,b,c\n", ";"), ("one;two\n", ";"),
    ],
)  # fmt: skip
def test_the_header_tells_the_separator(header: str, delimiter: str) -> None:
    assert delimiter_of(header, is_path_column) == delimiter


def test_a_value_that_json_does_not_have_is_null() -> None:
    value = {"a": [float("nan"), 1.5], "b": float("-inf"), "c": "NaN"}
    assert json_value(value) == {"a": [None, 1.5], "b": None, "c": "NaN"}


def test_a_table_with_semicolons_is_predicted(
    cli: Cli, small_run: Path, small_demo: Path, tmp_path: Path
) -> None:
    image = next((small_demo / "images").rglob("*.jpg"))
    table = tmp_path / "list.csv"
    table.write_text(f"note;path\nfirst;{image}\n", "utf-8")
    outcome = cli("-q", "predict", small_run, table, "--format", "jsonl")
    assert (outcome.code, outcome.json["inputs"]) == (0, {"note": "first"})
