"""From the options of ``train`` and ``config`` to a configuration."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refiner_cli.cli.console import terminal

if TYPE_CHECKING:
    from refiner_cli.config import Config
    from refiner_cli.settings import Layer

# Options of their own, for what most people set, and the settings that they stand for.
FLAG_KEYS = {
    "method": "method",
    "backbone": "backbone",
    "pretrained": "pretrained",
    "seed": "seed",
    "device": "device",
    "precision": "precision",
    "epochs": "train.epochs",
    "batch-size": "train.batch_size",
    "lr": "train.lr",
    "workers": "train.num_workers",
}


def configure(
    dataset: str, file: str | None, assignments: Iterable[str], flags: Mapping[str, Any]
) -> tuple[Config, dict[str, str]]:
    """The configuration of a training, and where each setting that is not a default comes from.

    Args:
        dataset: its recipe comes first, if it has one.
        file: a TOML file, or the name of a recipe.
        assignments: texts ``key=value`` of ``--set``.
        flags: values by option, named as in ``FLAG_KEYS``; None where an option is not given.
    """
    from refiner_cli.recipes import recipe_for
    from refiner_cli.settings import from_assignments, from_environment, resolve_with_sources

    recipe = recipe_for(dataset)
    if recipe:
        terminal.note(f"settings of the recipe {recipe[0]}")
    layers: list[Layer] = [read_settings(file)] if file else []
    layers.append(from_environment(os.environ, terminal.note))
    for flag, value in flags.items():
        if value is not None:
            layers.append((f"--{flag}", {FLAG_KEYS[flag]: value}))
    layers.append(from_assignments(assignments))
    return resolve_with_sources(layers, recipe)


def read_settings(text: str) -> Layer:
    """The layer of ``--config``: a file if there is one of that name, else a recipe."""
    from refiner_cli.recipes import recipe_for
    from refiner_cli.settings import from_file

    file = Path(text)
    return (None if file.is_file() else recipe_for(text)) or from_file(file)
