"""What is printed is printed as it is: no text is markup, none acts on the terminal, none fails to encode."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.console import Console

from refiner_cli.cli.app import app
from refiner_cli.cli.console import Terminal, new_table
from refiner_cli.errors import RefinerError
from refiner_cli.printable import printable, quoted
from tests.conftest import Cli

HARMLESS = ["[red]apple[/]", "[/red] box", "dark[v2]", ":smile:", "a\\[b]", "café", "👩\u200d🍳", "見る"]
HARMFUL = ["\x1b[31mred", "\x07bell", "\u202etxt.exe", "photo-\udcff.jpg", "a\rb", "\x9b2J"]


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of the app by its words."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_help_shows_every_square_bracket_of_its_source(cli: Cli, path: tuple[str, ...]) -> None:
    shown = "".join(cli(*path, "--help").out.split())
    command = dict(commands())[path]
    texts = [command.help or "", *(getattr(param, "help", None) or "" for param in command.params)]
    for text in texts:
        for bracket in re.findall(r"\[[^\]]*\]", text):
            assert "".join(bracket.split()) in shown


@pytest.mark.parametrize("text", HARMLESS)
def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str], text: str) -> None:
    terminal = Terminal()
    terminal.note(text)
    terminal.data(text)
    terminal.error(RefinerError(text))
    table = new_table(text, text, text)
    table.add_row(text, text)
    terminal.table(table)
    streams = capsys.readouterr()
    assert streams.err == f"{text}\nError: {text}\n"
    assert streams.out.count(text) == 6


@pytest.mark.parametrize("text", HARMFUL)
def test_text_does_not_act_on_the_terminal(capsys: pytest.CaptureFixture[str], text: str) -> None:
    terminal = Terminal()
    terminal.note(text)
    terminal.data(text)
    terminal.error(RefinerError(text))
    table = new_table(text, text)
    table.add_row(text)
    terminal.table(table)
    terminal.json({"text": text})
    with terminal.progress(text) as progress:
        progress(1, 1)
    streams = capsys.readouterr()
    for stream in streams:
        assert stream.encode()  # no lone surrogate
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", stream)
    assert printable(text) in streams.out
    terminal.json({"text": text})
    assert json.loads(capsys.readouterr().out) == {"text": text}


def test_names_with_brackets_in_progress_bars_are_no_markup() -> None:
    code = (
        "import time\nfrom refiner_cli.cli.console import Terminal\n"
        "with Terminal().progress('mine[/v2]') as progress: progress(1, 2); time.sleep(0.3)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True,
        env={"FORCE_COLOR": "1", "TERM": "xterm", "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert "mine[/v2]" in done.stderr


def test_info_shows_a_folder_and_labels_with_brackets(cli: Cli, small_demo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo[red]"
    folder.symlink_to(small_demo, target_is_directory=True)
    outcome = cli("info", folder)
    assert outcome.code == 0
    assert outcome.out.count("demo[red]") >= 2


@pytest.mark.parametrize(
    "arguments", [["info", b"no-\xff"], ["eval", "--split", b"\xff"], ["guide", b"\xff"]]
)
def test_an_argument_that_is_not_utf8_ends_in_one_sentence(arguments: list[str | bytes]) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "refiner_cli", *arguments], check=False, cwd=root, capture_output=True
    )
    assert done.returncode in {2, 3}
    assert b"Error" in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stderr.decode("utf-8")


def test_a_narrow_terminal_cuts_nothing() -> None:
    out, err = io.StringIO(), io.StringIO()
    narrow: dict[str, Any] = {"width": 50, "force_terminal": True, "soft_wrap": True, "color_system": None}
    terminal = Terminal(out=Console(file=out, **narrow), err=Console(file=err, **narrow))
    metrics = [f"metric{i}" for i in range(7)]
    table = new_table("Title of a table that is longer than the terminal is wide", "", *metrics)
    numbers = [f"{i}5.25..{i}9.75" for i in range(7)]
    table.add_row("closed", *numbers)
    terminal.table(table)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 50
    assert [word for line in lines for word in line.split() if ".." in word] == numbers
    assert [word for line in lines for word in line.split() if "metric" in word] == metrics
    assert sum("closed" in line for line in lines) == sum("metric" in line for line in lines) > 1
    assert lines[:2] == ["Title of a table that is longer than the terminal", "is wide"]
    assert sum("Title" in line for line in lines) == 1
    out.truncate(0)
    advice = new_table("", "", "found", "advice")
    advice.add_row("ok", "x" * 40, "")
    advice.add_row("--", "y" * 40, "install the package that is missing")
    terminal.table(advice)
    assert [line.split()[0] for line in out.getvalue().replace("\0", "").splitlines()] == [
        "found", "ok", "--", "advice", "--",
    ]  # fmt: skip
    path = "a/" * 40
    text = f"These are some words before a long place, {path} and some after it that need another line"
    terminal.note(text)
    terminal.error(RefinerError(text))
    noted = err.getvalue().splitlines()
    out.truncate(0)
    terminal.words(text, "# ")
    listed = [line.strip("\0") for line in out.getvalue().splitlines()]
    assert path in noted
    assert f"# {path}" in listed
    assert max(len(line) for line in [*noted, *listed] if path not in line) <= 50
    assert (len(noted), len(listed)) == (6, 3)


def test_a_path_with_a_dash_first_is_no_option_of_a_command_to_copy(
    capfd: pytest.CaptureFixture[str],
) -> None:
    Terminal().next("refiner", "train", "--resume", "--out", Path("-my runs"))
    assert capfd.readouterr().err == "next: refiner train --resume --out './-my runs'\n"
    assert (quoted(Path("-mine")), quoted(Path("mine")), quoted("-x")) == ("./-mine", "mine", "-x")
