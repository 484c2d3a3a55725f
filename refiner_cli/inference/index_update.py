"""Bring an index up to date: take in new and changed images, drop vanished ones, touch nothing else."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from refiner_cli.inference.earlier_rows import hash_version
from refiner_cli.inference.index import Index, IndexRow, PartInfo
from refiner_cli.inference.scan import UNKNOWN_VERSION, FileVersion, ImageFile, name_digest

NEVER = -1  # the version of an image that is computed again whatever its file is: it was an error


@dataclass(frozen=True)
class Encoded:
    """What encoding gave for an image: a row, and its vectors by role, each ``D``; zeros for an error."""

    row: IndexRow
    vectors: dict[str, Tensor]


@dataclass
class IndexChanges:
    """What an update did."""

    kept: int = 0  # as they were, or out of reach
    dropped: int = 0  # vanished images
    encoded: int = 0  # new, changed, or an error before
    errors: int = 0


@dataclass
class TrackedPart:
    """A part during an update, which may rewrite it without some of its rows."""

    info: PartInfo
    rows: list[int] | range  # places that are left, in the part as the update found it
    stale: set[int] = field(default_factory=set)  # of these, the ones to remove


@dataclass
class KnownImages:
    """The images of an index without their names: some 150 bytes each."""

    numbers: dict[bytes, int] = field(default_factory=dict)  # by digest of the name, counted over all parts
    versions: array[int] = field(default_factory=lambda: array("q"))  # of the file that each was made from
    seen: bytearray = field(default_factory=bytearray)  # whether the scan came across it
    firsts: list[int] = field(default_factory=list)  # the number of each part's first image

    @classmethod
    def read(cls, index: Index) -> KnownImages:
        """Raises ModelFileError if a part is missing or damaged."""
        known = cls()
        for part in index.info.parts:
            known.firsts.append(len(known.versions))
            for row in index.rows(part):
                known.numbers[name_digest(row.path)] = len(known.versions)
                version = hash_version(FileVersion(row.size, row.modified))
                known.versions.append(version if row.status == "ok" else NEVER)
        known.seen = bytearray(len(known.versions))
        return known

    def place(self, number: int) -> tuple[int, int]:
        """Which part an image is in, and its row there."""
        part = bisect_right(self.firsts, number) - 1
        return part, number - self.firsts[part]


class IndexUpdate:
    """One update of an index, which the caller has locked.

    Ask :meth:`wanted` of every image there is, give what was computed of the wanted ones to :meth:`take`, and
    end with :meth:`finish`. What is lost if the process dies between is at most one part.

    Args:
        progress: called with the number of images that are done.

    Raises:
        ModelFileError: a part is missing or damaged.
    """

    def __init__(self, index: Index, progress: Callable[[int], None] = lambda _: None) -> None:
        self.index, self.progress = index, progress
        self.changes = IndexChanges()
        index.sweep()
        self.known = KnownImages.read(index)
        self.parts = [TrackedPart(part, range(part.images)) for part in index.info.parts]
        self.pending: list[Encoded] = []

    def wanted(self, image: ImageFile, version: FileVersion) -> bool:
        """Whether an image has to be encoded: it is new, changed, or could not be read before."""
        number = self.known.numbers.get(name_digest(image.name))
        if number is None:
            return True
        self.known.seen[number] = True
        before = self.known.versions[number]
        # A file that cannot be looked at now may be back tomorrow: its vectors are kept.
        if before == hash_version(version) or (version == UNKNOWN_VERSION and before != NEVER):
            self.changes.kept += 1
            self._show()
            return False
        self._mark_stale(number)
        return True

    def take(self, encoded: Encoded) -> None:
        """Add what was computed of a wanted image; a full part is written at once."""
        self.pending.append(encoded)
        self.changes.encoded += 1
        self.changes.errors += encoded.row.status != "ok"
        self._show()
        if len(self.pending) == self.index.info.part_size:
            self._write()

    def finish(self, out_of_reach: Callable[[str], bool] = lambda _: False) -> IndexChanges:
        """Write what is left and drop the images that nobody asked for.

        Args:
            out_of_reach: of such an image, whether it may be there all the same; then it stays.
        """
        for part, first in zip(self.parts, self.known.firsts, strict=True):
            unseen = [i for i, place in enumerate(part.rows) if not self.known.seen[first + place]]
            names = self.index.paths(part.info, unseen) if unseen else []
            for i, name in zip(unseen, names, strict=True):
                if out_of_reach(name):
                    self.changes.kept += 1
                else:
                    part.stale.add(part.rows[i])
                    self.changes.dropped += 1
        self._write()
        return self.changes

    def _show(self) -> None:
        self.progress(self.changes.kept + self.changes.encoded)

    def _mark_stale(self, number: int) -> None:
        part, place = self.known.place(number)
        self.parts[part].stale.add(place)

    def _write(self) -> None:
        """Write a part of new images; the parts that held older states of images lose those rows first."""
        for part in self.parts:
            if part.stale:
                remove_rows(self.index, part)
        if self.pending:
            self.index.replace([], *split_encoded(self.pending, self.index.info.roles))
            self.pending = []


def split_encoded(
    encoded: Sequence[Encoded], roles: Sequence[str]
) -> tuple[list[IndexRow], dict[str, Tensor]]:
    """Rows and vectors of images as a part is written: the vectors by role, ``N x D``."""
    vectors = {role: torch.stack([one.vectors[role] for one in encoded]) for role in roles}
    return [one.row for one in encoded], vectors


def remove_rows(index: Index, part: TrackedPart) -> None:
    """Rewrite a part without its stale rows."""
    rows, vectors = index.rows(part.info), index.vectors(part.info)
    gone = {bisect_left(part.rows, place) for place in part.stale}
    kept = [place for place in range(len(rows)) if place not in gone]
    chosen = {role: getattr(vectors, role)[kept] for role in index.info.roles}
    written = index.replace([part.info], [rows[place] for place in kept], chosen)
    part.rows, part.stale = [part.rows[place] for place in kept], set()
    if written:
        part.info = written
