"""Photos with the same content, so that none is in two splits or under two labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refiner_cli.data.benchmark import SPLITS
from refiner_cli.data.create.photos import Photo

_BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class Duplicate:
    """A photo that is not used, because its content is that of another."""

    photo: Photo
    same_as: Photo

    @property
    def is_conflict(self) -> bool:
        """Whether the two have different labels."""
        return self.photo.pair != self.same_as.pair


def drop_duplicates(photos: Sequence[Photo]) -> tuple[list[Photo], list[Duplicate]]:
    """Keep one photo of each content, the first by split and path; none where the labels differ.

    Raises OSError for a file that cannot be read.
    """
    kept: list[Photo] = []
    dropped: list[Duplicate] = []
    for group in _same_content(photos):
        first, *others = sorted(group, key=lambda photo: (_rank(photo), str(photo.file)))
        other_label = next((photo for photo in others if photo.pair != first.pair), None)
        if other_label is None:
            kept.append(first)
        else:
            dropped.append(Duplicate(first, other_label))
        for photo in others:
            contradicting = next((other for other in group if other.pair != photo.pair), first)
            dropped.append(Duplicate(photo, contradicting))
    return kept, dropped


def _rank(photo: Photo) -> int:
    return SPLITS.index(photo.split) if photo.split else 0


def _same_content(photos: Sequence[Photo]) -> list[list[Photo]]:
    """Groups of photos with the same bytes; only files of equal size are read."""
    by_size: dict[int, list[Photo]] = {}
    for photo in photos:
        by_size.setdefault(photo.file.stat().st_size, []).append(photo)
    groups: dict[tuple[int, bytes], list[Photo]] = {}
    for size, same_size in by_size.items():
        for photo in same_size:
            content = _digest(photo.file) if len(same_size) > 1 else b""
            groups.setdefault((size, content), []).append(photo)
    return list(groups.values())


def _digest(file: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=20)
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.digest()
