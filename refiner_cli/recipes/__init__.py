"""Recipes: one settings file a benchmark, used when a dataset is named and nothing else is said."""

from __future__ import annotations

import tomllib
from importlib import resources

from refiner_cli.settings import Layer


def recipe_for(dataset: str) -> Layer | None:
    """The recipe that ships for a catalogue name, or None."""
    file = resources.files("refiner_cli.recipes").joinpath(f"{dataset}.toml")
    if not dataset.replace("-", "").isalnum() or not file.is_file():
        return None
    return f"{dataset}.toml", tomllib.loads(file.read_text("utf-8"))
