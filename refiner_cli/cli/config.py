"""``refiner config``: every setting of a training, with its value and where the value comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from refiner_cli.cli.configure import configure
from refiner_cli.cli.console import Json, terminal
from refiner_cli.errors import UsageError
from refiner_cli.settings import toml_text

if TYPE_CHECKING:
    from refiner_cli.config import Setting


def config(
    dataset: Annotated[
        str, typer.Argument(metavar="[DATASET]", help="Use the recipe of this dataset, as 'train' does.")
    ] = "",
    method: Annotated[str | None, typer.Option(help="The method whose settings are listed.")] = None,
    file: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="A TOML file, or a recipe's name.")
    ] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; repeatable.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="Print a recipe as TOML, to be copied and changed.")
    ] = None,
    recipes: Annotated[bool, typer.Option("--recipes", help="List the recipes.")] = False,
    as_json: Json = False,
) -> None:
    """List every setting and where it comes from. The output is a TOML file that --config reads."""
    from refiner_cli.recipes import recipe_names, recipe_text

    if recipes and recipe:
        raise UsageError("--recipes lists all recipes and --recipe prints one; give one of them.")
    if recipes:
        names = recipe_names()
        if as_json:
            terminal.json({"schema": "refiner.recipes/1", "recipes": names})
        else:
            for name in names:
                terminal.data(name)
        return
    if recipe:
        text = recipe_text(recipe)
        if as_json:
            terminal.json({"schema": "refiner.recipe/1", "name": recipe, "toml": text})
        else:
            terminal.data(text.rstrip())
        return
    from refiner_cli.config import describe_settings

    resolved, sources = configure(dataset, file, assign or [], {"method": method})
    settings = describe_settings(resolved, sources)
    if as_json:
        rows = [to_json(setting) for setting in settings]
        terminal.json({"schema": "refiner.config/1", "method": resolved.method, "settings": rows})
    else:
        show_settings(settings)


def to_json(setting: Setting) -> dict[str, Any]:
    return {"key": setting.key, "value": setting.value, "default": setting.default, "type": setting.kind,
            "source": setting.source, "description": setting.description}  # fmt: skip


def show_settings(settings: list[Setting]) -> None:
    """A TOML file: per setting its value and where it comes from, then meaning, type and default."""
    for setting in settings:
        source = "" if setting.source == "default" else f"  # {setting.source}"
        terminal.data(f"{setting.key} = {toml_text(setting.value)}{source}")
        kind = f"[{setting.kind}; default {toml_text(setting.default)}]"
        terminal.words(f"{setting.description} {kind}".strip(), "#     ")
