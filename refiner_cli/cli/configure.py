"""From the options of ``train`` and ``config`` to a configuration."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refiner_cli.cli.console import terminal
from refiner_cli.errors import ConfigError, RefinerError, UsageError

if TYPE_CHECKING:
    from refiner_cli.config import Config
    from refiner_cli.data.benchmark import Benchmark
    from refiner_cli.settings import Layer

# Options of their own, for what most people set, and the settings that they stand for.
FLAG_KEYS = {
    "method": "method",
    "backbone": "backbone",
    "pretrained": "pretrained",
    "init": "init",
    "seed": "seed",
    "device": "device",
    "precision": "precision",
    "epochs": "train.epochs",
    "batch-size": "train.batch_size",
    "lr": "train.lr",
    "workers": "train.num_workers",
    "compile": "train.compile",
}


def configure(
    dataset: str,
    file: str | None,
    assignments: Iterable[str],
    flags: Mapping[str, Any],
    start: Layer | None = None,
) -> tuple[Config, dict[str, str]]:
    """The configuration of a training, and where each setting that is not a default comes from.

    Args:
        dataset: its recipe for the chosen method comes first, if it has one.
        file: a TOML file, or the name of a recipe.
        assignments: texts ``key=value`` of ``--set``.
        flags: values by option, named as in ``FLAG_KEYS``; None where an option is not given.
        start: settings that follow from what is trained on.
    """
    from refiner_cli.data.download.catalog_files import built_in
    from refiner_cli.recipes import recipe_for
    from refiner_cli.settings import (
        chosen_method,
        from_assignments,
        from_environment,
        resolve_with_sources,
    )

    named = read_settings(file) if file and not Path(file).is_file() else None  # a recipe by name
    layers: list[Layer] = [read_settings(file)] if file and named is None else []
    layers.append(from_environment(os.environ, terminal.note))
    for flag, value in flags.items():
        if value is not None:
            layers.append((f"--{flag}", {FLAG_KEYS[flag]: value}))
    layers.append(from_assignments(assignments))
    init = next((str(values["init"]) for _, values in reversed(layers) if values.get("init")), "")
    start = start_from(init) if init else start
    method = chosen_method([layer for layer in (named, start, *layers) if layer])
    # A folder of the user's may be called as a recipe of another kind: "own", "few", "vectors".
    recipe = recipe_for(dataset, method) if dataset in built_in().datasets else None
    if recipe:
        terminal.note(f"settings of the recipe {recipe[0]}")
    elif start and not init:
        recipe = recipe_for("vectors", method)
    elif dataset:
        recipe = recipe_of_data(dataset, method, few=not named)
    config, sources = resolve_with_sources(layers, recipe, named, start)
    if start:
        check_start(start, config, sources)
    return config, sources


def recipe_of_data(dataset: str, method: str, *, few: bool) -> Layer | None:
    """The recipe of a published benchmark in a folder of any name, else that for a few images a pair.

    Args:
        few: whether the latter may be chosen.

    Returns None for any other dataset, and for one that is not there.
    """
    from refiner_cli.cli.common import open_dataset
    from refiner_cli.recipes import FEW_IMAGES, FEW_IN_ALL, recipe_for

    try:
        benchmark = open_dataset(dataset)
    except RefinerError:
        return None  # training says what is wrong with it
    if (name := published_name(benchmark)) and (recipe := recipe_for(name, method)):
        terminal.note(f"settings of the recipe {recipe[0]}: {dataset} has the counts of {name}")
        return recipe
    images, in_all = benchmark.images_per_pair(), len(benchmark.samples["train"])
    recipe = recipe_for("few", method)
    if not few or images > FEW_IMAGES or in_all > FEW_IN_ALL or recipe is None:
        return None
    terminal.note(f"settings of the recipe {recipe[0]}: {images:g} images a pair, {FEW_IMAGES} or fewer")
    return recipe


def published_name(benchmark: Benchmark) -> str:
    """What the catalogue calls the benchmark that has exactly these pairs and images; empty if none has."""
    from refiner_cli.data.download.catalog import Counts
    from refiner_cli.data.download.catalog_files import built_in

    counts = Counts.of(benchmark)
    known = [one for one in built_in().datasets.values() if one.expected.train_images]
    return next((one.name for one in known if not counts.differences(one.expected)), "")


def start_from(init: str) -> Layer:
    """The settings that follow from ``--init``: those of a trained model, or just the backbone's name.

    Raises:
        ModelFileError: there is no such model, or it is damaged.
        FetchError: it cannot be downloaded.
    """
    from refiner_cli.cli.common import is_zero_shot
    from refiner_cli.core.model_io.zero_shot import default_tag, split_name
    from refiner_cli.training.run_dir import model_folder
    from refiner_cli.training.warm_start import initial_layer

    if is_zero_shot(Path(init)):
        name, tag = split_name(init)
        return f"--init {init}", {"backbone": name, "pretrained": tag or default_tag(name)}
    return initial_layer(init, model_folder(Path(init)))


def check_start(start: Layer, config: Config, sources: Mapping[str, str]) -> None:
    """Raise ConfigError if another backbone is asked for than the model to start from has."""
    from refiner_cli.core.model_io.zero_shot import backbone_text
    from refiner_cli.core.towers.architectures import find_architecture

    source, own = start
    if find_architecture(config.backbone).full_name != find_architecture(own["backbone"]).full_name:
        raise ConfigError(
            f"{sources['backbone']}: the backbone {config.backbone} contradicts "
            f"{source}, whose backbone is {backbone_text(own['backbone'], own['pretrained'])}.",
            hint="Leave the backbone out, or start from a model on that backbone.",
        )


def asked_settings(
    file: str | None, assignments: Iterable[str], flags: Mapping[str, Any]
) -> dict[str, tuple[Any, str]]:
    """Value and source of every setting that is given explicitly, by key; the same arguments as above.

    Raises ConfigError for an unknown key.
    """
    from refiner_cli.settings import explicit_values, from_assignments

    layers: list[Layer] = [read_settings(file)] if file else []
    layers += [(f"--{flag}", {FLAG_KEYS[flag]: value}) for flag, value in flags.items() if value is not None]
    return explicit_values([*layers, from_assignments(assignments)])


def changed_calibration(config: Config, assignments: Iterable[str]) -> Config:
    """A run's configuration with other ``calibration.*`` settings. Raises UsageError for other keys."""
    from refiner_cli.config import flatten
    from refiner_cli.settings import from_assignments, resolve

    source, values = from_assignments(assignments)
    for key in values:
        if not key.startswith("calibration."):
            raise UsageError(
                f"{source}: '{key}' cannot be changed after training.", hint="Set calibration.* only."
            )
    return resolve([("run.json", dict(flatten(config.model_dump()))), (source, values)])


def read_settings(text: str) -> Layer:
    """The layer of ``--config``: a file if there is one of that name, else a recipe."""
    from refiner_cli.recipes import recipe_for
    from refiner_cli.settings import from_file

    file = Path(text)
    return (None if file.is_file() else recipe_for(text)) or from_file(file)
