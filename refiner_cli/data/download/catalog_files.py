"""Catalogue files: of this package, of installed packages, and the user's ``REFINER_HOME/catalog.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from refiner_cli.data.download.catalog import Catalogue, Dataset, Entry, Source, first_problem
from refiner_cli.errors import ConfigError
from refiner_cli.plugins import added_catalogues

USER_CATALOGUE = "catalog.toml"  # in REFINER_HOME
_BUILT_IN = "the catalogue of refiner"


class CatalogueFile(Entry):
    """A catalogue file: tables of sources and of datasets that refer to them by file name."""

    sources: dict[str, dict[str, Any]] = Field(default_factory=dict)
    datasets: dict[str, dict[str, Any]] = Field(default_factory=dict)


@cache
def built_in() -> Catalogue:
    """The catalogue of this package."""
    text = resources.files("refiner_cli.data.download").joinpath("catalog.toml").read_text("utf-8")
    return parse({_BUILT_IN: text}).model_copy(update={"origins": {}})


def load_catalogue(home: Path) -> Catalogue:
    """Every dataset: of this package, of installed packages, and of the user's file in ``home``.

    Raises:
        ConfigError: a catalogue is malformed, or two define the same name; says which.
    """
    texts = dict(added_catalogues())
    file = home / USER_CATALOGUE
    try:
        texts[str(file)] = file.read_text("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The catalogue {file} cannot be read ({error}).") from None
    return parse(texts, built_in()) if texts else built_in()


def parse(texts: Mapping[str, str], base: Catalogue | None = None) -> Catalogue:
    """Read catalogues and add them to ``base``; a dataset may use the sources of those before it.

    Args:
        texts: TOML by where it comes from: what errors and :attr:`Catalogue.origins` say.

    Raises:
        ConfigError: one is malformed, or two define the same name.
    """
    datasets = dict(base.datasets) if base else {}
    sources = {source.file: source for dataset in datasets.values() for source in dataset.sources}
    dataset_origins = dict.fromkeys(datasets, _BUILT_IN)
    source_origins = dict.fromkeys(sources, _BUILT_IN)
    for origin, text in texts.items():
        try:
            found = CatalogueFile.model_validate(tomllib.loads(text))
            for name, fields in found.sources.items():
                source = Source.model_validate({**fields, "file": name})
                if sources.setdefault(name, source) != source:
                    raise _clash("source", name, source_origins[name], origin)
                source_origins.setdefault(name, origin)
            for name, fields in found.datasets.items():
                if name in datasets:
                    raise _clash("dataset", name, dataset_origins[name], origin)
                datasets[name] = _dataset(name, fields, sources, may_be_made=base is None)
                dataset_origins[name] = origin
        except ValidationError as error:
            raise _malformed(origin, f"{error.title}: {first_problem(error)}") from None
        except ValueError as error:  # TOML, too
            raise _malformed(origin, str(error)) from None
    known = base.datasets if base else {}
    added = {name: origin for name, origin in dataset_origins.items() if name not in known}
    return Catalogue(datasets=datasets, origins=added)


def _dataset(
    name: str, fields: dict[str, Any], sources: Mapping[str, Source], *, may_be_made: bool
) -> Dataset:
    listed = fields.get("sources", [])
    if not isinstance(listed, list):
        raise ValueError(f"datasets.{name}: sources is not a list")
    if unknown := [file for file in listed if file not in sources]:
        raise ValueError(f"datasets.{name}: the source {unknown[0]!r} is not defined")
    try:
        dataset = Dataset.model_validate(
            {**fields, "name": name, "sources": [sources[file] for file in listed]}
        )
    except ValidationError as error:
        raise ValueError(f"datasets.{name}: {first_problem(error)}") from None
    if dataset.kind == "made" and not may_be_made:
        raise ValueError(f"datasets.{name}: only refiner itself has datasets of the kind 'made'")
    return dataset


def _malformed(origin: str, problem: str) -> ConfigError:
    return ConfigError(f"The datasets of {origin} cannot be used: {problem}.", hint="Fix it, or remove it.")


def _clash(what: str, name: str, first: str, second: str) -> ConfigError:
    return ConfigError(
        f"The {what} {name!r} is defined twice: in {first} and in {second}.", hint="Rename one of them."
    )
