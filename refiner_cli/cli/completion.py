"""What Tab offers as values: methods, backbones, tags, devices, settings, datasets, recipes, runs.

A completing function never raises, prints, or imports torch. Where it offers nothing, the shell completes
file names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from refiner_cli.guide import page_text

if TYPE_CHECKING:
    from refiner_cli.data.download.catalog import Dataset

MODEL_FILES = ("run.json", "seeds.json", "config.json")  # a folder with one of them is a MODEL
DEFAULT_BACKBONE = "ViT-L-14"
_BACKBONE_ROW = re.compile(r"^\| ([^|]+?) \| yes \|(?:[^|]*\|){4} ([^|]*?) \|", re.M)
_SETTING_ROW = re.compile(r"^\| `([a-z_.]+)` \|", re.M)
Values = Callable[[typer.Context], Iterable[str]]


@cache
def backbone_tags() -> dict[str, list[str]]:
    """The backbones that work and their tags, from the guide's table."""
    found = _BACKBONE_ROW.findall(page_text("models"))
    return {name: [] if tags == "none" else tags.split(", ") for name, tags in found}


def methods(_context: typer.Context) -> list[str]:
    from refiner_cli.plugins import method_names

    return method_names()


def backbones(_context: typer.Context) -> list[str]:
    return ["tiny", *backbone_tags()]


def tags(context: typer.Context) -> list[str]:
    """The tags of --backbone, or of the default one."""
    return [*backbone_tags().get(context.params.get("backbone") or DEFAULT_BACKBONE, []), "none"]


def devices(_context: typer.Context) -> list[str]:
    return ["auto", "cpu", "cuda", "cuda:0", "mps"]


def precisions(_context: typer.Context) -> list[str]:
    return ["auto", "fp32", "bf16", "fp16"]


def setting_keys(_context: typer.Context) -> list[str]:
    tables = page_text("configuration").partition("## Renamed")[0]
    return [f"{key}=" for key in dict.fromkeys(_SETTING_ROW.findall(tables))]  # methods share some keys


def recipes(_context: typer.Context) -> list[str]:
    from refiner_cli.recipes import recipe_names

    return recipe_names()


def catalogue() -> dict[str, Dataset]:
    from refiner_cli.data.download.catalog_files import load_catalogue
    from refiner_cli.data.paths import home

    return load_catalogue(home(os.environ).root).datasets


def downloads(_context: typer.Context) -> list[str]:
    return list(catalogue())


def datasets(_context: typer.Context) -> list[str]:
    """What can be trained and evaluated on: no word vectors."""
    return [name for name, dataset in catalogue().items() if dataset.kind != "vectors"]


def model_folders(_context: typer.Context) -> Iterator[str]:
    """Runs, folders of seeds and exported models here and in runs/."""
    for place in (Path(), Path("runs")):
        for folder in sorted(place.iterdir()) if place.is_dir() else ():
            if any((folder / name).is_file() for name in MODEL_FILES):
                yield str(folder)


def described_things(context: typer.Context) -> list[str]:
    return [*model_folders(context), *datasets(context)]


# By the name of the parameter, in every command.
VALUES_BY_NAME: dict[str, tuple[Values, ...]] = {
    "method": (methods,),
    "backbone": (backbones,),
    "pretrained": (tags,),
    "device": (devices,),
    "precision": (precisions,),
    "assign": (setting_keys,),
    "recipe": (recipes,),
    "config": (recipes,),
    "file": (recipes,),
    "dataset": (datasets,),
    "names": (downloads,),
    "model": (model_folders, backbones),
    "run": (model_folders,),
    "runs": (model_folders, backbones),
    "init": (model_folders,),
    "what": (described_things,),
}


def completer(kinds: tuple[Values, ...]) -> Callable[[typer.Context, str], list[str]]:
    """The function that Typer calls: the values that begin with what was typed.

    While nothing is typed, only the first kind that has any: two runs are not lost among 140 backbones.
    """

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        try:
            found = [list(values(ctx)) for values in kinds]
        except Exception:  # noqa: BLE001 - whatever is wrong is no matter of a Tab
            return []
        offered = chain(*found) if incomplete else next(filter(None, found), [])
        return [value for value in offered if value.startswith(incomplete)]

    return complete


def add_completion(function: Callable[..., Any]) -> None:
    """Give every parameter of a command the values that its name stands for."""
    hints = get_type_hints(function, include_extras=True)
    for name, hint in hints.items():
        kinds = VALUES_BY_NAME.get(name)
        if kinds and get_origin(hint) is Annotated and get_args(hint)[0] is not bool:
            described: Any = get_args(hint)[1]
            described.autocompletion = described.autocompletion or completer(kinds)
    function.__annotations__ = hints  # texts would be read again by Typer, and what was added lost
