"""Recipes: settings files that ship, one per benchmark; ``refiner train NAME`` starts from its recipe."""

from __future__ import annotations

import tomllib
from importlib import resources

from refiner_cli.errors import UsageError
from refiner_cli.settings import Layer

FOLDER = resources.files("refiner_cli.recipes")


def recipe_names() -> list[str]:
    """All recipes."""
    return sorted(file.name.removesuffix(".toml") for file in FOLDER.iterdir() if file.name.endswith(".toml"))


def recipe_for(name: str) -> Layer | None:
    """The recipe of that name, or None."""
    if name not in recipe_names():
        return None
    return f"{name}.toml", tomllib.loads(recipe_text(name))


def recipe_text(name: str) -> str:
    """The file of a recipe. Raises UsageError if there is none of that name."""
    if name not in recipe_names():
        raise UsageError(
            f"There is no recipe {name!r}.", hint=f"The recipes are {', '.join(recipe_names())}."
        )
    return FOLDER.joinpath(f"{name}.toml").read_text("utf-8")
