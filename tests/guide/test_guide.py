"""The guide: pages that exist and are in step with the code, and the command that shows them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import refiner_cli.guide
from refiner_cli.cli.reference import all_commands, renewed
from refiner_cli.config import known_fields
from refiner_cli.guide import PAGES, page_text, page_title
from refiner_cli.plugins import BUILT_IN_METHODS
from tests.conftest import ROOT, Cli
from tests.guide.examples import documents

FOLDER = Path(refiner_cli.guide.__file__).parent


def test_every_page_is_listed_and_every_listed_page_exists() -> None:
    assert {file.stem for file in FOLDER.glob("*.md")} == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_the_generated_parts_are_in_step(page: str) -> None:
    text = (FOLDER / f"{page}.md").read_text("utf-8")
    assert renewed(text) == text, "run: python -m refiner_cli.cli.reference"


def test_every_setting_and_every_command_is_on_its_page() -> None:
    settings, reference = page_text("configuration"), page_text("commands")
    for method in BUILT_IN_METHODS:
        assert all(f"| `{key}` |" in settings for key in known_fields(method))
    names = [name for name, _ in all_commands()]
    assert {"refiner", "refiner train", "refiner guide", "refiner dataset create"} <= set(names)
    assert all(f"## {name}\n" in reference for name in names)
    assert "Required." in reference
    assert "<" not in reference


def test_every_json_schema_on_its_page_is_one_that_the_program_writes() -> None:
    named = set(re.findall(r"`(refiner\.[a-z-]+/\d)`", page_text("output-and-exit-codes")))
    sources = "".join(file.read_text("utf-8") for file in (ROOT / "refiner_cli").rglob("*.py"))
    assert len(named) >= 10
    assert all(f'"{schema}"' in sources for schema in named)


@pytest.mark.parametrize("name", documents())
def test_links_lead_to_files(name: str) -> None:
    document = documents()[name]
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text("utf-8")):
        assert (document.parent / target).is_file(), target


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_without_a_page_the_command_lists_all(cli: Cli) -> None:
    listed = cli("guide").out
    assert all(page in listed and page_title(page) in listed for page in PAGES)
    assert cli("guide", "--json").json == {
        "schema": "refiner.guide/1", "pages": {page: page_title(page) for page in PAGES},
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_into_a_pipe_a_page_is_its_markdown(cli: Cli, page: str) -> None:
    assert cli("guide", page).out == page_text(page)
    assert "<!--" not in page_text(page)
    assert cli("guide", page, "--json").json["text"] == page_text(page)


def test_an_unknown_page_names_the_nearest(cli: Cli) -> None:
    outcome = cli("guide", "fotos")
    assert (outcome.code, outcome.out) == (2, "")
    assert "Did you mean 'photos'?" in outcome.err
    assert "The pages are photos," in cli("guide", "quux").err


def test_on_a_terminal_a_page_is_rendered_in_its_width_and_without_torch() -> None:
    code = (
        "import sys\nfrom refiner_cli.__main__ import main\n"
        "try: main(['guide', 'results'])\nexcept SystemExit as e: assert not e.code\n"
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "80"},
    )  # fmt: skip
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert "# What was measured" not in plain
    assert max(map(len, plain.splitlines())) <= 80


def test_every_schema_that_a_command_prints_is_on_the_page() -> None:
    folder = Path(refiner_cli.guide.__file__).parents[1]
    sources = [*sorted((folder / "cli").glob("*.py")), folder / "reproduction" / "table.py"]
    printed = {
        found for file in sources for found in re.findall(r'"(refiner\.[a-z-]+/\d)"', file.read_text())
    }
    page = page_text("output-and-exit-codes")
    assert len(printed) > 20
    assert [schema for schema in sorted(printed) if f"`{schema}`" not in page] == []
