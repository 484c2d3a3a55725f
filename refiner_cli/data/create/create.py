"""A benchmark in the published folder format from a user's own photos."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Literal

from refiner_cli.data.benchmark import (
    IMAGES,
    METADATA,
    SPLIT_FOLDER,
    SPLITS,
    Sample,
    Split,
    write_metadata,
    write_pairs,
)
from refiner_cli.data.create.photos import Photo
from refiner_cli.data.create.splits import assign_images, choose_unseen, name_unseen, require_cover
from refiner_cli.data.download.verify import Verification, verify
from refiner_cli.data.integrity import UnreadableImage, find_unreadable
from refiner_cli.data.labels import Pair
from refiner_cli.data.progress import Progress, Report, StoppedError
from refiner_cli.errors import DatasetError
from refiner_cli.files import move_into_place

Placing = Literal["link", "copy"]


@dataclass(frozen=True)
class SplitOptions:
    """How pairs and images are to be split, where the photos do not say.

    Attributes:
        unseen_fraction: share of the pairs that training never sees.
        unseen: exactly these pairs instead.
    """

    unseen_fraction: float = 0.2
    unseen: tuple[Pair, ...] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Created:
    """A new benchmark. ``left_out``: images that cannot be decoded and are not in it."""

    verification: Verification
    left_out: tuple[UnreadableImage, ...]
    copied: int
    linked: int


def create_dataset(
    photos: Sequence[Photo],
    out: Path,
    wish: SplitOptions,
    *,
    placing: Placing,
    workers: int,
    report: Report,
    stop: Event,
) -> Created:
    """Write a benchmark folder that appears whole, or not at all.

    Every state and object occurs in training. Images are hard-linked where the file system can do
    that, and else copied; a link takes no space, and shares its content with the original.

    Raises:
        DatasetError: ``out`` is in use, names clash, or the photos cannot be split as wished; says why.
        StoppedError: ``stop`` was set.
    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} is there already.", hint="Choose another folder, or remove it.")
    require_distinct(photos)
    files = [str(photo.file.absolute()) for photo in photos]
    bad = find_unreadable(Path(), files, name="photos", workers=workers, report=report, stop=stop)
    if missing := [fault.path for fault in bad if fault.missing]:
        raise DatasetError(f"{len(missing)} of the listed images are not there, {missing[0]} for one.")
    unreadable = {fault.path for fault in bad}
    good = [photo for photo, file in zip(photos, files, strict=True) if file not in unreadable]
    parts = split_photos(good, wish)
    work = out.with_name(f".{out.name}.partial")
    shutil.rmtree(work, ignore_errors=True)  # links and copies are quickly made again
    try:
        linked = _write(parts, work, placing, report, stop)
        verification = verify(work, None, decode=False, workers=workers, report=report, stop=stop)
        if not verification.usable:
            raise DatasetError(f"The new dataset is not usable: {verification.summary()}.")
        if out.is_dir():
            out.rmdir()
        move_into_place(work, out)
    except OSError as error:
        raise DatasetError(f"{out} cannot be written ({error}).") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    verification = replace(verification, name=out.name, root=out)
    return Created(verification, tuple(bad), copied=len(good) - linked, linked=linked)


def split_photos(photos: Sequence[Photo], wish: SplitOptions) -> dict[Split, list[tuple[Photo, Pair]]]:
    """Photos to splits, as they say or else as wished. Raises DatasetError naming what prevents it."""
    by_pair: dict[Pair, list[Photo]] = {}
    for photo in sorted(photos, key=lambda photo: photo.file):
        by_pair.setdefault(photo.pair, []).append(photo)
    if any(photo.split for photo in photos):
        parts: dict[Split, list[tuple[Photo, Pair]]] = {name: [] for name in SPLITS}
        for pair, found in by_pair.items():
            for photo in found:
                if photo.split:
                    parts[photo.split].append((photo, pair))
        require_cover({pair for _, pair in parts["train"]}, set(by_pair))
    else:
        if wish.unseen is None:
            unseen = choose_unseen(by_pair, wish.unseen_fraction, wish.seed)
        else:
            unseen = name_unseen(by_pair, wish.unseen, wish.seed)
        parts = assign_images(by_pair, unseen, wish.seed)
    for name, part in parts.items():
        if not part:
            raise DatasetError(
                f"The split {name} would be empty: there are {len(photos)} images of {len(by_pair)} pairs.",
                hint="Add images, or hold out more pairs with --unseen-fraction.",
            )
    return parts


def require_distinct(photos: Sequence[Photo]) -> None:
    """Raise DatasetError for names that differ in upper and lower case only: they would share a folder."""
    for index in (0, 1):
        spelt: dict[str, str] = {}
        for name in sorted({photo.pair[index] for photo in photos}):
            other = spelt.setdefault(name.casefold(), name)
            if other != name:
                raise DatasetError(
                    f"The {'state' if index == 0 else 'object'} {name!r} is also spelt {other!r}.",
                    hint="Use one spelling.",
                )


def _write(
    parts: dict[Split, list[tuple[Photo, Pair]]], work: Path, placing: Placing, report: Report, stop: Event
) -> int:
    """Write everything; return how many images were linked."""
    taken: set[str] = set()
    samples: dict[Split, tuple[Sample, ...]] = {}
    linked, done, total = 0, 0, sum(map(len, parts.values()))
    for name, part in parts.items():
        found: list[Sample] = []
        for photo, pair in sorted(part, key=lambda item: (item[1], item[0].file)):
            path = _free(f"{_portable('_'.join(pair))}/{_portable(photo.file.name)}", taken)
            linked += _place(photo.file, work / IMAGES / path, placing)
            found.append(Sample(path, pair))
            done += 1
            report(Progress("link", work.name, done, total))
            if stop.is_set():
                raise StoppedError
        samples[name] = tuple(found)
        write_pairs(
            work / SPLIT_FOLDER / f"{name}_pairs.txt", tuple(sorted({sample.pair for sample in found}))
        )
    write_metadata(work / METADATA, samples)
    return linked


def _place(file: Path, target: Path, placing: Placing) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    if placing == "link":
        try:
            os.link(file.resolve(), target)  # a link to the photo, not to a link to it
        except OSError:  # another file system, or one without links
            pass
        else:
            return True
    shutil.copyfile(file, target)
    return False


def _portable(name: str) -> str:
    """A file name that every system accepts, as close to the given one as possible."""
    return re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f]', "_", name).rstrip(". ")


def _free(path: str, taken: set[str]) -> str:
    """The path, with a number if another image has it already, also in another case."""
    stem, dot, suffix = path.rpartition(".")
    number, free = 1, path
    while free.casefold() in taken:
        number += 1
        free = f"{stem}-{number}{dot}{suffix}"
    taken.add(free.casefold())
    return free
