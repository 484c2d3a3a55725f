"""The catalogue of known datasets: where they come from and what they must contain.

Read from ``catalog.toml``, which is data; this module only gives it types.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from refiner_cli.data.benchmark import Benchmark, Split
from refiner_cli.errors import UsageError


class Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Counts(Entry):
    """Sizes of a benchmark. In the catalogue, None says that the number is not known for sure."""

    states: int | None = None
    objects: int | None = None
    train_pairs: int | None = None
    val_seen_pairs: int | None = None
    val_unseen_pairs: int | None = None
    test_seen_pairs: int | None = None
    test_unseen_pairs: int | None = None
    train_images: int | None = None
    val_images: int | None = None
    test_images: int | None = None

    @classmethod
    def of(cls, benchmark: Benchmark) -> Self:
        """What a benchmark really has. A pair is seen if it is a training pair."""
        train = set(benchmark.pairs["train"])
        val, test = set(benchmark.pairs["val"]), set(benchmark.pairs["test"])
        return cls(
            states=len(benchmark.states),
            objects=len(benchmark.objects),
            train_pairs=len(train),
            val_seen_pairs=len(val & train),
            val_unseen_pairs=len(val - train),
            test_seen_pairs=len(test & train),
            test_unseen_pairs=len(test - train),
            train_images=len(benchmark.samples["train"]),
            val_images=len(benchmark.samples["val"]),
            test_images=len(benchmark.samples["test"]),
        )

    def differences(self, expected: Counts) -> list[str]:
        """``"train images: 830, expected 831"`` for every number that is known and not met."""
        found = self.model_dump()
        return [
            f"{name.replace('_', ' ')}: {found[name]}, expected {number}"
            for name, number in expected.model_dump().items()
            if number is not None and found[name] != number
        ]


class Source(Entry):
    """One file on the net."""

    file: str
    urls: tuple[str, ...] = ()
    holds: str
    sha256: str | None = None


class WithdrawnRelease(Entry):
    """A release that must not be used, recognised by its counts."""

    name: str
    reason: str
    counts: Counts


class Vectors(Entry):
    """The shape of a table of word vectors."""

    words: int
    dimensions: int


class Dataset(Entry):
    """One thing that ``refiner download`` can bring."""

    name: str
    title: str
    kind: Literal["benchmark", "vectors", "made"]
    sources: tuple[Source, ...] = ()
    split_folders: tuple[str, ...] = ()  # folders that may hold its splits, where an archive has several
    separator: str | None = None  # between state and object in its pair lists, if it is not a space
    files: tuple[str, ...] = ()  # vectors: what to take out of the archive
    home: str
    licence: str
    citation: tuple[str, ...]
    expected: Counts = Counts()
    split_sha256: dict[Split, str] = Field(default_factory=dict)
    refused: tuple[WithdrawnRelease, ...] = ()
    vectors: Vectors | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.kind == "vectors") != (self.vectors is not None and bool(self.files)):
            raise ValueError("vectors and files belong to the kind 'vectors', and to it alone")
        if (self.kind == "made") == bool(self.sources):
            raise ValueError("every kind but 'made' has sources")
        return self

    @property
    def by_hand(self) -> bool:
        """Whether no part of it can be fetched without a browser."""
        return bool(self.sources) and not any(source.urls for source in self.sources)


class Catalogue(Entry):
    """All datasets, by name."""

    datasets: dict[str, Dataset]

    def find(self, name: str) -> Dataset:
        """Raises UsageError, with the nearest name, for a name that is not in the catalogue."""
        if name in self.datasets:
            return self.datasets[name]
        near = difflib.get_close_matches(name, self.datasets, 1)
        hint = f"Did you mean '{near[0]}'?" if near else f"It has {', '.join(self.datasets)}."
        raise UsageError(f"The catalogue has no dataset {name!r}.", hint=hint)

    def shared_sources(self, but: Iterable[Dataset]) -> set[str]:
        """File names of the sources that datasets other than the given ones need."""
        names = {dataset.name for dataset in but}
        return {
            s.file for dataset in self.datasets.values() if dataset.name not in names for s in dataset.sources
        }


def parse(text: str) -> Catalogue:
    """Read a catalogue. Raises ValueError or KeyError: a mistake in it is ours, not the user's."""
    raw: dict[str, Any] = tomllib.loads(text)
    sources = {file: {"file": file, **fields} for file, fields in raw["sources"].items()}
    datasets = {
        name: {"name": name, **fields, "sources": [sources[file] for file in fields.get("sources", [])]}
        for name, fields in raw["datasets"].items()
    }
    return Catalogue.model_validate({"datasets": datasets})


@cache
def catalogue() -> Catalogue:
    """The catalogue that ships with the package."""
    return parse(resources.files("refiner_cli.data.download").joinpath("catalog.toml").read_text("utf-8"))
