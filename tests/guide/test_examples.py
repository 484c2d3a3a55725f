"""Every command, Python example, settings file and JSON object of README and guide works as it stands."""

from __future__ import annotations

import json
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main

from refiner_cli.cli.app import app
from refiner_cli.data.download.catalog_files import parse
from refiner_cli.experiments.__main__ import argument_parser
from refiner_cli.experiments.few_shot import few_shot_parser
from refiner_cli.experiments.warm_starts import warm_start_parser
from refiner_cli.settings import from_file, resolve
from tests.conftest import Cli
from tests.guide.examples import (
    BACKBONES,
    CATALOGUE,
    SMALL,
    Example,
    Prepared,
    documents,
    draw_photos,
    examples,
    prepare,
)

# Run by .ci/run in a fresh clone and a fresh environment.
SET_UP = {
    'python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/refiner demo',
    'python3 -m venv .venv && .venv/bin/pip install -e ".[dev]" && .venv/bin/python -m pytest',
    "python3 -m venv .venv",
    ".venv/bin/pip install -e '.[dev]'",
    ".venv/bin/python -m pytest",
    ".venv/bin/python -m ruff check .",
    ".venv/bin/python -m ruff format --check .",
    ".venv/bin/python -m mypy",
    "python -m refiner_cli.cli.reference",  # tests/guide/test_guide.py compares what it writes
}  # fmt: skip


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A small dataset, a run on it, and the files that the examples name."""
    from refiner_cli.__main__ import main

    folder = tmp_path_factory.mktemp("examples")
    draw_photos(folder / "photos")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setenv(name, value)
        for arguments in (
            ["-q", "dataset", "create", folder / "photos", "--out", folder / "dataset"],
            ["-q", "train", folder / "dataset", "--out", folder / "run"],
        ):
            with pytest.raises(SystemExit) as left:
                main([str(argument) for argument in arguments])
            assert not left.value.code
    return prepare(folder / "prepared", folder / "dataset", folder / "run")


@pytest.fixture
def place(prepared: Prepared, tmp_path: Path, own_home: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run a page's examples in; the catalogue's datasets are small ones."""
    home = tmp_path / "home"
    for name in CATALOGUE:
        (home / "datasets").mkdir(parents=True, exist_ok=True)
        (home / "datasets" / name).symlink_to(prepared.places["data/mine"], target_is_directory=True)
    for name, value in {**SMALL, "REFINER_HOME": str(home)}.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", documents())
def test_the_examples_of_a_page_work(cli: Cli, prepared: Prepared, place: Path, name: str) -> None:
    for example in examples(documents()[name]):
        run(example, cli, prepared, place)


def run(example: Example, cli: Cli, prepared: Prepared, place: Path) -> None:
    """Run one block in the current folder."""
    if example.language == "sh":
        for line in example.lines():
            run_command(line, cli, prepared, place)
    elif example.language == "python":
        if "onnxruntime" in example.text:
            return  # run in a process without PyTorch by tests/core/model_io/test_onnx.py
        prepared.provide([word.strip('"') for word in example.text.replace("(", " ").split()], place)
        prepared.provide(["runs/mit", "apple.jpg", "data/mine"], place)
        exec(compile(example.text, "example", "exec"), {})  # noqa: S102 - the project's own text
    elif example.language == "toml":
        content = tomllib.loads(example.text)
        (place / "mine.toml").write_text(example.text, "utf-8")
        if "datasets" in content:
            assert parse({"guide": example.text}).datasets
        elif "project" not in content:
            resolve([from_file(place / "mine.toml")])
    elif example.language == "json":
        json.loads(example.text)
    else:
        assert example.language == ""
        assert example.text.strip() in SET_UP or example.text.strip().startswith("refiner ")


def run_command(line: str, cli: Cli, prepared: Prepared, place: Path) -> None:
    """Run one command, or check its options where it needs the network or several processes."""
    words = ["tiny" if word in BACKBONES else word for word in shlex.split(line)]
    if line in SET_UP:
        return
    if words[0] == "torchrun":
        check_options(words[words.index("refiner_cli") + 1 :])
    elif words[:4] == ["python", "-m", "refiner_cli.experiments", "few-shot"]:
        few_shot_parser().parse_args(words[4:])
    elif words[:4] == ["python", "-m", "refiner_cli.experiments", "warm-start"]:
        warm_start_parser().parse_args(words[4:])
    elif words[:3] == ["python", "-m", "refiner_cli.experiments"]:
        argument_parser().parse_args(words[3:])
    elif words[:2] == ["refiner", "download"] and "--list" not in words:
        check_options(words[1:])
    elif "--push" in words or any(word.startswith("hf-hub:") for word in words):
        check_options(words[1:])  # run against a server by tests/core/model_io/test_hub.py
    elif "models/onnx" in line or "onnx" in words:
        check_options(words[1:])  # run by tests/core/model_io/test_onnx.py
    else:
        words, target = words[: words.index(">")] if ">" in words else words, words[-1]
        assert words[0] == "refiner", line
        made = ("train" in words[1:2] and "--resume" not in words) or words[1:3] == ["dataset", "create"]
        given = [word for before, word in pairwise(words) if not (made and before == "--out")]
        prepared.provide(given, place)
        outcome = cli(*words[1:])
        assert outcome.code == 0, f"{line}\n{outcome.err}"
        if words[-1] != target:
            (place / target).write_text(outcome.out, "utf-8")


def check_options(words: list[str]) -> None:
    """Let the parser take a command's arguments, and run nothing."""
    group = typer.main.get_command(app)
    context = group.make_context("refiner", list(words))
    name, command, rest = group.resolve_command(context, list(words))
    assert command is not None
    command.make_context(str(name), rest, parent=context)
