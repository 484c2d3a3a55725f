"""Recipes: settings files that ship; ``refiner train NAME`` starts from the one of its benchmark and method.

``BENCHMARK.toml`` is that of Refiner and of methods without a recipe of their own there;
``BENCHMARK-METHOD.toml`` has the published settings of a method on a benchmark.
"""

from __future__ import annotations

import tomllib
from importlib import resources

from refiner_cli.errors import UsageError
from refiner_cli.settings import Layer

FEW_IMAGES = 16  # training images a pair up to which the recipe "few" is chosen by itself
FEW_IN_ALL = 3200  # and training images in all: more than its 200 steps of 16 see
FOLDER = resources.files("refiner_cli.recipes")


def recipe_names() -> list[str]:
    """All recipes."""
    return sorted(file.name.removesuffix(".toml") for file in FOLDER.iterdir() if file.name.endswith(".toml"))


def recipe_for(name: str, method: str = "") -> Layer | None:
    """The recipe of a benchmark for a method, else the benchmark's, else None."""
    for recipe in (f"{name}-{method}", name):
        if recipe in recipe_names():
            return f"{recipe}.toml", tomllib.loads(recipe_text(recipe))
    return None


def recipe_text(name: str) -> str:
    """The file of a recipe. Raises UsageError if there is none of that name."""
    if name not in recipe_names():
        raise UsageError(
            f"There is no recipe {name!r}.", hint=f"The recipes are {', '.join(recipe_names())}."
        )
    return FOLDER.joinpath(f"{name}.toml").read_text("utf-8")
