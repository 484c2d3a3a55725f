"""Outputs are checked before the work begins, and results are shown before they are written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from refiner_cli.cli.outputs import OutputFile, check_outputs
from refiner_cli.errors import UsageError
from refiner_cli.evaluation.feasibility.fit import FeasibilityFit
from tests.conftest import Cli
from tests.evaluation.test_score_files import saved

SAMPLES = ["--bootstrap-samples", "2"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with everything that an output must not be."""
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "pages").mkdir()
    os.mkfifo(tmp_path / "pipe.html")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return tmp_path


WRONG = {
    "folder.html": "is a folder",
    "pipe.html": "not a regular file",
    "file/r.html": "cannot be written",
    "loop/r.html": "cannot be written",
    f"{'n' * 300}.html": "cannot be written",
    "r.txt": "does not end in .html",
    "r": "does not end in .html",
    "r\0.html": "cannot be written",
}


@pytest.mark.parametrize("name", WRONG)
def test_an_output_that_cannot_be_written_is_refused(place: Path, name: str) -> None:
    before = sorted(place.rglob("*"))
    with pytest.raises(UsageError, match=WRONG[name]) as refused:
        check_outputs([OutputFile("--report", Path(f"{place}/{name}"), (".html",))])
    assert "--report" in str(refused.value)
    assert sorted(place.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_refused(place: Path) -> None:
    (place / "pages").chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        check_outputs([OutputFile("--report", place / "pages" / "r.html")])


def test_a_full_or_read_only_file_system_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UsageError, match="Read-only file system"):
        check_outputs([OutputFile("--report", place / "r.html")])


@pytest.mark.parametrize("name", ["r.html", "R.HTML", "new/folders/r.html", "pages/../r.html"])
def test_a_possible_output_is_accepted_and_not_created(place: Path, name: str) -> None:
    check_outputs([OutputFile("--report", place / name, (".html",)), OutputFile("--other", None)])
    assert not (place / name).exists()
    assert not (place / "new").exists()


def test_no_two_outputs_and_no_input_share_a_file(place: Path) -> None:
    same = [OutputFile("--a", place / "x.html"), OutputFile("--b", place / "pages" / ".." / "x.html")]
    with pytest.raises(UsageError, match="the file of --a already"):
        check_outputs(same)
    with pytest.raises(UsageError, match="an input already"):
        check_outputs(same[:1], [place / "x.html"])


@pytest.mark.parametrize(
    "options",
    [
        ["--report", "file/r.html"],
        ["--report", "folder.html"],
        ["--report", "r.pdf"],
        ["--per-image", "file/r.jsonl"],
        ["--per-image", "r.csv"],
        ["--report", "x.html", "--per-image", "x.html"],
    ],
)
def test_eval_refuses_before_it_computes(
    cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("refiner_cli.evaluation.evaluate.evaluate_score_file", None)
    outcome = cli("eval", "--scores", saved(place), *options, *SAMPLES)
    assert (outcome.code, outcome.out) == (2, "")
    assert "Traceback" not in outcome.err
    assert (place / "file").read_text() == "kept"


@pytest.mark.parametrize("as_json", [True, False])
def test_numbers_are_shown_even_if_a_file_then_fails(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("refiner_cli.evaluation.report.page.write_report", fail)
    json_option = ["--json"] if as_json else []
    outcome = cli(
        "eval", "--scores", saved(tmp_path), "--report", tmp_path / "r.html", *SAMPLES, *json_option
    )
    assert outcome.code == 1
    assert "No space left" in outcome.err
    assert json.loads(outcome.out)["worlds"] if as_json else "given " in outcome.out


def test_a_run_that_others_share_read_only_is_evaluated(
    cli: Cli, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FeasibilityFit, "store", refuse)
    outcome = cli("eval", small_run, "--world", "open", "--feasibility", "soft", *SAMPLES)
    assert outcome.code == 0
    assert "open " in outcome.out
    assert "not stored" in outcome.err
