"""The rooms of the package: imports point down only, and never in a circle."""

from __future__ import annotations

import ast
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import refiner_cli

ROOT = Path(refiner_cli.__file__).parent
PACKAGE = "refiner_cli"

# From the top to the ground. A module may import from its own room and from rooms further down.
ROOMS = [
    "cli",
    "reproduction",
    "experiments",
    "bench",
    "demo",
    "training",
    "evaluation",
    "inference",
    "core.model_io",
    "core.models",
    "core.towers",
    "core.runtime",
    "data.create",
    "data.download",
    "data",
    "recipes",
    "settings",
    "config",
    "guide",
    "plugins",
    "render",
    "printable",
    "metric_names",
    "files",
    "machine",
    "errors",
    "_version",
]
FACES = {"__init__", "__main__"}  # the package's face and the program's entry may use every room
LARGEST = 300  # lines; about 250 is the habit


def modules() -> dict[str, Path]:
    """Every module by its dotted name below the package."""
    names = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = file
    return names


def room(module: str) -> str:
    """The room of a module: the longest entry of ``ROOMS`` that its name starts with."""
    fitting = [name for name in ROOMS if f"{module}.".startswith(f"{name}.")]
    assert fitting, f"{module} is in no room"
    return max(fitting, key=len)


def imported(file: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in it, type-checking blocks included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for alias in node.names:
                found |= {node.module, f"{node.module}.{alias.name}"}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    known = modules()
    below = {name.removeprefix(f"{PACKAGE}.") for name in found if name.startswith(f"{PACKAGE}.")}
    return {name for name in below if name in known}


def test_imports_point_down() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, file in modules().items()
        if name not in FACES
        for other in imported(file)
        if ROOMS.index(room(other)) < ROOMS.index(room(name))
    ]
    assert not wrong, "\n".join(wrong)


def test_types_are_checked_without_the_extras() -> None:
    """mypy passes whether or not an extra is installed: its packages are listed as possibly missing."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text("utf-8"))
    requirements = [
        line
        for name, lines in project["project"]["optional-dependencies"].items()
        for line in lines
        if name != "dev"
    ]
    extras = {re.split(r"[<>=\[ ]", line)[0].replace("-", "_") for line in requirements}
    listed = {
        name.removesuffix(".*")
        for override in project["tool"]["mypy"]["overrides"]
        for name in override["module"]
    }
    used = set()
    for file in modules().values():
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                used.add((node.module or "").partition(".")[0])
    assert {"ray", "transformers"} <= used & extras
    assert not (used & extras) - listed


def test_nothing_imports_the_packages_face() -> None:
    for name, file in modules().items():
        text = "" if name in FACES else file.read_text("utf-8")
        assert not re.search(rf"^\s*(from {PACKAGE} import|import {PACKAGE}$)", text, re.M), name


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    edges = {name: imported(file) - {name} for name, file in modules().items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in edges[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_modules_are_short() -> None:
    long = {name: len(file.read_text("utf-8").splitlines()) for name, file in modules().items()}
    assert {name: lines for name, lines in long.items() if lines > LARGEST} == {}


SHARED_NAMES = {"app", "main"}  # every program has them


def test_every_name_is_one_thing() -> None:
    owners: dict[str, list[str]] = {}
    for module, file in modules().items():
        for node in ast.parse(file.read_text("utf-8")).body:
            for name in defined(node):
                owners.setdefault(name, []).append(module)
    twice = {name: places for name, places in owners.items() if len(places) > 1 and name not in SHARED_NAMES}
    assert twice == {}


def defined(node: ast.stmt) -> list[str]:
    """The public names that a top-level statement defines."""
    names: list[str] = []
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        names = [node.name]
    elif isinstance(node, ast.Assign):
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        names = [node.target.id]
    return [name for name in names if not name.startswith("_")]


COMMAND = re.compile(r"refiner (?:[a-zA-Z]+ )+(?:-[^{']*)?(?:> )?$")  # the beginning of a command in a text
SAFE = {"quoted", "name"}  # what may follow: a path in the shell's quotes, a name of the catalogue


def test_commands_in_messages_can_be_copied() -> None:
    """A path that follows a command in an f-string is quoted for the shell."""
    bare = []
    for file in ROOT.rglob("*.py"):
        texts = [
            node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.JoinedStr)
        ]
        for before, value in (pair for text in texts for pair in pairwise(text.values)):
            words = str(before.value) if isinstance(before, ast.Constant) else ""
            if isinstance(value, ast.FormattedValue) and COMMAND.search(words):
                used = value.value.func if isinstance(value.value, ast.Call) else value.value
                name = used.attr if isinstance(used, ast.Attribute) else getattr(used, "id", "")
                bare += [] if name in SAFE else [f"{file.name}: {words}"]
    assert bare == []
