"""``refiner doctor``, and hints that name the package to install."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import tomllib

import pytest

from refiner_cli.cli.doctor import FOREIGN, OPTIONAL
from tests.conftest import ROOT, Cli


def optional_dependencies() -> set[str]:
    """The packages of the extras that users install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {name: found for name, found in project["optional-dependencies"].items() if name != "dev"}
    return {re.split(r"[<>=]", requirement)[0] for found in extras.values() for requirement in found}


def test_every_optional_package_is_checked() -> None:
    assert {name for _, install in OPTIONAL.values() for name in install.split()} == optional_dependencies()


def test_a_missing_package_is_named_with_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in OPTIONAL else find(name))
    outcome = cli("doctor")
    assert outcome.code == 0
    for use, install in OPTIONAL.values():
        assert f"for {use}: pip install {install}" in outcome.out


@pytest.mark.parametrize("installed", [True, False])
def test_another_project_of_the_same_names_is_reported(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    version = importlib.metadata.version

    def with_foreign(name: str) -> str:
        if name != FOREIGN:
            return version(name)
        if installed:
            return "3.1"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", with_foreign)
    checks = {check["name"]: check for check in cli("doctor", "--json").json["checks"]}
    assert (FOREIGN in checks) == installed
    if installed:
        assert checks[FOREIGN]["found"] == "3.1 is installed too"
        assert f"pip uninstall {FOREIGN}" in checks[FOREIGN]["advice"]


def test_hints_name_packages_that_exist_and_never_the_foreign_one() -> None:
    known = optional_dependencies() | {"socksio"}  # for proxies; httpx2 asks for it
    for file in (ROOT / "refiner_cli").rglob("*.py"):
        text = file.read_text("utf-8")
        assert f"{FOREIGN}[" not in text, file
        for names in re.findall(r"pip install ((?:[a-z][\w-]*)(?: [a-z][\w-]*)*)(?=[\"').`])", text):
            assert set(names.split()) <= known, f"{file}: pip install {names}"
