"""Methods and datasets by name: those that come with refiner, and those that other packages add.

A package adds a method with an entry point in the group ``refiner.methods`` that names a
:class:`refiner_cli.core.models.base.Model` subclass, and datasets with one in the group
``refiner.datasets`` that names a function without arguments returning the text of a catalogue in
TOML. This module knows names only; nothing is imported before it is needed.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from refiner_cli.errors import ConfigError

METHODS_GROUP, DATASETS_GROUP = "refiner.methods", "refiner.datasets"
BUILT_IN_METHODS = {
    "refiner": "refiner_cli.core.models.refiner:Refiner",
    "clip": "refiner_cli.core.models.baselines.clip:Clip",
    "coop": "refiner_cli.core.models.baselines.prompt_tuning:Coop",
    "csp": "refiner_cli.core.models.baselines.prompt_tuning:Csp",
    "troika": "refiner_cli.core.models.baselines.troika:Troika",
    "troika-shared": "refiner_cli.core.models.baselines.troika_shared:TroikaShared",
}


def added(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, of all installed packages."""
    return {point.name: point for point in entry_points(group=group)}


def method_names() -> list[str]:
    """Every method that can be trained, the built-in ones first."""
    return [*BUILT_IN_METHODS, *sorted(added(METHODS_GROUP).keys() - BUILT_IN_METHODS.keys())]


@cache
def method_class(name: str) -> Any:
    """The class of a method.

    Raises:
        ConfigError: there is no such method, or its package cannot be imported.
    """
    if name in BUILT_IN_METHODS:
        module, _, attribute = BUILT_IN_METHODS[name].partition(":")
        return getattr(import_module(module), attribute)
    point = added(METHODS_GROUP).get(name)
    if point is None:
        raise ConfigError(f"The method {name!r} is unknown.", hint=f"Use one of {', '.join(method_names())}.")
    try:
        return point.load()
    except Exception as error:  # noqa: BLE001 - somebody else's package may fail in any way
        raise ConfigError(
            f"The method {name!r} of the package {distribution(point)} cannot be imported ({error})."
        ) from None


def added_catalogues() -> dict[str, str]:
    """Catalogue texts that installed packages add, by where they come from.

    Raises:
        ConfigError: a package's catalogue cannot be loaded.
    """
    texts: dict[str, str] = {}
    for point in entry_points(group=DATASETS_GROUP):  # two packages may use one name
        origin = f"the package {distribution(point)} (entry point {point.name})"
        try:
            text = point.load()()
            if not isinstance(text, str):
                raise TypeError(f"it returns {type(text).__name__}, not text")
        except Exception as error:  # noqa: BLE001 - somebody else's package may fail in any way
            raise ConfigError(
                f"The datasets of {origin} cannot be loaded ({error}).", hint="Update or uninstall it."
            ) from None
        texts[origin] = text
    return texts


def distribution(point: EntryPoint) -> str:
    """The name of the package that an entry point comes from."""
    return point.dist.name if point.dist else point.value
