"""The catalogue of known datasets: where they come from and what they must contain.

This is the schema of every catalogue file; see :mod:`refiner_cli.data.download.catalog_files`. Names
and files in it become paths, so they are checked as strictly as those of an archive.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from refiner_cli.data.benchmark import Benchmark, Split
from refiner_cli.data.safe_paths import portable
from refiner_cli.errors import UsageError

_RESERVED = {"archives", "refiner.lock"}  # stand beside the datasets in their folder


def _path(text: str) -> str:
    """A relative path that every system can have. Raises ValueError."""
    if portable(text, windows=True) != text:
        raise ValueError("is not a plain relative path")
    return text


def _file_name(text: str) -> str:
    if "/" in _path(text) or text.startswith("."):
        raise ValueError("is not a plain file name")
    return text


def _dataset_name(text: str) -> str:
    if text in _RESERVED:
        raise ValueError("is reserved")
    return _file_name(text)


CatalogueName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$"), AfterValidator(_dataset_name)]
FileName = Annotated[str, AfterValidator(_file_name)]
RelativePath = Annotated[str, AfterValidator(_path)]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+/\S*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
NonNegative = Annotated[int, Field(ge=0, strict=True)]
NonEmpty = Annotated[str, Field(min_length=1)]


class Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Counts(Entry):
    """Sizes of a benchmark. In the catalogue, None says that the number is not known."""

    states: NonNegative | None = None
    objects: NonNegative | None = None
    train_pairs: NonNegative | None = None
    val_seen_pairs: NonNegative | None = None
    val_unseen_pairs: NonNegative | None = None
    test_seen_pairs: NonNegative | None = None
    test_unseen_pairs: NonNegative | None = None
    train_images: NonNegative | None = None
    val_images: NonNegative | None = None
    test_images: NonNegative | None = None

    @classmethod
    def of(cls, benchmark: Benchmark) -> Self:
        """The sizes of a loaded benchmark. A pair is seen if it is a training pair."""
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
        """``"train images: 830, expected 831"`` for every known number that differs."""
        found = self.model_dump()
        return [
            f"{name.replace('_', ' ')}: {found[name]}, expected {number}"
            for name, number in expected.model_dump().items()
            if number is not None and found[name] != number
        ]


class Source(Entry):
    """One archive that a publisher offers.

    Attributes:
        urls: tried in this order; none: it can only be fetched by hand.
        holds: pattern of a path inside, by which a file given by hand is recognised.
        sha256: as its publisher states it.
    """

    file: FileName
    urls: tuple[Url, ...] = ()
    holds: NonEmpty
    sha256: Sha256 | None = None


class WithdrawnRelease(Entry):
    """A release that must not be used, recognised by its counts."""

    name: NonEmpty
    reason: NonEmpty
    counts: Counts


class Vectors(Entry):
    """The shape of a table of word vectors."""

    words: NonNegative
    dimensions: NonNegative


class Dataset(Entry):
    """One thing that ``refiner download`` can get.

    Attributes:
        split_folders: names of the folder that holds its pair lists, where an archive has several.
        separator: between state and object in its pair lists, if it is not a space.
        files: of word vectors: what to take out of the archive.
    """

    name: CatalogueName
    title: NonEmpty
    kind: Literal["benchmark", "vectors", "made"]
    sources: tuple[Source, ...] = ()
    split_folders: tuple[str, ...] = ()
    separator: NonEmpty | None = None
    files: tuple[RelativePath, ...] = ()
    home: NonEmpty
    licence: NonEmpty
    citation: tuple[str, ...]
    expected: Counts = Counts()
    split_sha256: dict[Split, Sha256] = Field(default_factory=dict)
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
    """All datasets by name.

    Attributes:
        origins: where a dataset was added, by its name; those of this package are not listed.
    """

    datasets: dict[str, Dataset]
    origins: dict[str, str] = {}

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


def first_problem(error: ValidationError) -> str:
    """The first thing that a schema finds wrong, with its place: ``"urls.0: ..."``."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(map(str, problem["loc"]))
    return f"{place}: {problem['msg']}" if place else problem["msg"]
