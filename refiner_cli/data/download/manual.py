"""Archives fetched by hand: which of a dataset's archives each of them is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from refiner_cli.data.download.catalog import Dataset, Source
from refiner_cli.data.download.content import open_archive
from refiner_cli.data.download.lockfile import Lockfile
from refiner_cli.errors import InputError


@dataclass(frozen=True)
class ManualArchives:
    """Files given by hand, and the file names of the sources that they are."""

    archives: tuple[Path, ...] = ()
    sources: frozenset[str] = frozenset()


def recognise(dataset: Dataset, given: Sequence[Path], lockfile: Lockfile) -> ManualArchives:
    """Match files to a dataset's sources, by name or else by content, and check or pin their hashes.

    A dataset that can only be fetched by hand may consist of any number of files: file-sharing sites
    split folders into several zips.

    Raises:
        InputError: a file does not exist, or is none of the archives.
        ArchiveError: a file is not an archive, damaged, or refused.
        FetchError: a file differs from the one downloaded earlier.
    """
    sources: set[str] = set()
    for path in given:
        if not path.is_file():
            raise InputError(f"The archive {path} does not exist.")
        source = _source(dataset, path)
        if source:
            sources.add(source.file)
            lockfile.check(source, path)
        elif not dataset.by_hand:
            expected = "; ".join(f"{source.file}, which holds {source.holds}" for source in dataset.sources)
            raise InputError(f"{path} is not an archive of {dataset.title}.", hint=f"Those are {expected}.")
    return ManualArchives(tuple(given), frozenset(sources))


def _source(dataset: Dataset, path: Path) -> Source | None:
    with open_archive(path) as archive:
        members = ["/" + name for name in archive.members]
    name = re.sub(r" ?\(\d+\)(?=\.)", "", path.name).casefold()  # browsers call a second copy "name (1).zip"
    for source in dataset.sources:
        if name == source.file.casefold():
            return source
    for source in dataset.sources:
        if any(fnmatchcase(member, "*/" + source.holds) for member in members):
            return source
    return None
