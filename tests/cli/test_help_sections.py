"""Help is whole sentences: nothing is cut off in the lists of commands, and everything has its section."""

from __future__ import annotations

import pytest
import typer

from refiner_cli.cli.app import app
from refiner_cli.cli.help_sections import COMMAND_SECTIONS, MANY_OPTIONS, OPTION_SECTIONS
from refiner_cli.cli.reference import all_commands, parameters
from tests.conftest import Cli

SHELL_LIMIT = 45  # characters of a summary that Typer shows beside a command in zsh and fish


def test_every_command_is_in_one_section() -> None:
    listed = [name for names in COMMAND_SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("words", [[], ["dataset"]])
def test_no_summary_is_cut_off(cli: Cli, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]
    shown = cli(*words, "--help").out
    for name, inner in command.commands.items():  # type: ignore[attr-defined]
        summary = inner.get_short_help_str(SHELL_LIMIT)
        assert not summary.endswith("..."), name
        assert any(line.split() == [name, *summary.split()] for line in shown.splitlines()), name


def test_options_of_long_lists_are_in_sections(cli: Cli) -> None:
    known = {name for names in OPTION_SECTIONS.values() for name in names}
    commands = {name: [p[0] for p in parameters(function)] for name, function in all_commands()}
    assert known <= {name for names in commands.values() for name in names}
    predict = cli("predict", "--help").out
    assert predict.index("\nOptions:") < predict.index("\nImages:") < predict.index("\nComputing:")
    assert predict.index("\nComputing:") < predict.index("--device ")
    assert len(commands["refiner info"]) < MANY_OPTIONS
    assert "\nComputing:" not in cli("info", "--help").out
