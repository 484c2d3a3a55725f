"""A benchmark in the published folder format from a user's photos."""

from __future__ import annotations

import errno
import os
import shutil
import unicodedata
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
from refiner_cli.data.create.duplicates import Duplicate, drop_duplicates
from refiner_cli.data.create.photos import Photo
from refiner_cli.data.create.splits import (
    HeldOutPairs,
    assign_images,
    choose_unseen,
    name_unseen,
    require_cover,
)
from refiner_cli.data.download.verify import Verification, verify
from refiner_cli.data.integrity import UnreadableImage, find_unreadable
from refiner_cli.data.labels import Pair
from refiner_cli.data.progress import Progress, Report, StoppedError
from refiner_cli.data.safe_paths import portable_name
from refiner_cli.errors import DatasetError
from refiner_cli.files import atomic_folder

Placing = Literal["link", "copy"]


@dataclass(frozen=True)
class SplitOptions:
    """How to split pairs and images, where the photos do not say.

    Attributes:
        unseen_fraction: share of the pairs that training never sees.
        unseen: exactly these pairs instead.
        all_train: leave nothing to measure on.
    """

    unseen_fraction: float = 0.2
    unseen: tuple[Pair, ...] | None = None
    seed: int = 0
    all_train: bool = False


@dataclass(frozen=True)
class Created:
    """A new benchmark.

    Attributes:
        left_out: photos that cannot be decoded, or have two labels, and are not in it.
        repeated: photos that are not in it because another with the same content and label is.
        unseen: the pairs without training images, of val and of test.
    """

    verification: Verification
    left_out: tuple[UnreadableImage, ...]
    repeated: tuple[Duplicate, ...]
    unseen: HeldOutPairs
    copied: int
    linked: int


def create_dataset(
    photos: Sequence[Photo],
    out: Path,
    options: SplitOptions,
    *,
    placing: Placing,
    workers: int,
    report: Report,
    stop: Event,
) -> Created:
    """Write a benchmark folder that appears complete, or not at all.

    Every state and object occurs in training. Images are hard-linked where the file system can do
    that, and else copied; a link takes no space, and shares its content with the original.

    Raises:
        DatasetError: ``out`` is in use or holds photos, or the photos cannot be split as requested.
        StoppedError: ``stop`` was set.
    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} exists already.", hint="Choose another folder, or remove it.")
    files = {str(photo.file.absolute()): str(photo.file) for photo in photos}  # path -> as it was given
    found = find_unreadable(Path(), list(files), name="photos", workers=workers, report=report, stop=stop)
    bad = [replace(fault, path=files[fault.path]) for fault in found]
    if missing := [fault.path for fault in bad if fault.missing and not Path(fault.path).is_symlink()]:
        verb = "does not exist" if len(missing) == 1 else "do not exist"
        raise DatasetError(f"{len(missing)} of the {len(files)} images listed {verb}, such as {missing[0]}.")
    unreadable = {fault.path for fault in found}  # a file may be listed under two paths
    readable = [photo for photo in photos if str(photo.file.absolute()) not in unreadable]
    try:
        good, dropped = drop_duplicates(readable)
        parts = split_photos(good, options)
        with atomic_folder(out) as work:
            linked = _write(parts, work, out.name, placing, report, stop)
            verification = verify(work, None, decode=False, workers=workers, report=report, stop=stop)
            if not verification.usable:
                raise DatasetError(f"The new dataset is not usable: {verification.summary()}.")
            if out.is_dir():
                out.rmdir()
    except OSError as error:
        raise DatasetError(f"{out} cannot be written ({error}).") from error
    return Created(
        replace(verification, name=out.name, root=out),
        left_out=(*bad, *(_two_labels(each) for each in dropped if each.is_conflict)),
        repeated=tuple(each for each in dropped if not each.is_conflict),
        unseen=_unseen(parts),
        copied=len(good) - linked,
        linked=linked,
    )


def _two_labels(duplicate: Duplicate) -> UnreadableImage:
    other = duplicate.same_as
    return UnreadableImage(
        str(duplicate.photo.file), f"the same photo is labelled '{' '.join(other.pair)}' as {other.file}"
    )


def _unseen(parts: dict[Split, list[tuple[Photo, Pair]]]) -> HeldOutPairs:
    val, test = (
        sorted({pair for _, pair in parts[split]} - {pair for _, pair in parts["train"]})
        for split in ("val", "test")
    )
    return HeldOutPairs(tuple(val), tuple(test))


def split_photos(photos: Sequence[Photo], options: SplitOptions) -> dict[Split, list[tuple[Photo, Pair]]]:
    """Assign photos to splits, as they say or by the options. Raises DatasetError naming what prevents it."""
    by_pair: dict[Pair, list[Photo]] = {}
    for photo in sorted(photos, key=lambda photo: photo.file):
        by_pair.setdefault(photo.pair, []).append(photo)
    given = any(photo.split for photo in photos)
    if options.all_train:
        return {"train": [(photo, pair) for pair, found in by_pair.items() for photo in found],
                "val": [], "test": []}  # fmt: skip
    if given:
        parts: dict[Split, list[tuple[Photo, Pair]]] = {name: [] for name in SPLITS}
        for pair, found in by_pair.items():
            for photo in found:
                if photo.split:
                    parts[photo.split].append((photo, pair))
        require_cover({pair for _, pair in parts["train"]}, set(by_pair))
    else:
        if options.unseen is None:
            unseen = choose_unseen(by_pair, options.unseen_fraction, options.seed)
        else:
            unseen = name_unseen(by_pair, options.unseen, options.seed)
        parts = assign_images(by_pair, unseen, options.seed)
    for name, part in parts.items():
        if not part and (name == "train" or not given):
            raise DatasetError(
                f"The split {name} would be empty: images: {len(photos)}, pairs: {len(by_pair)}.",
                hint=f"Give images for {name}."
                if given
                else "Add images, hold out more pairs with --unseen-fraction, or nothing with --all-train.",
            )
    return parts


def _write(
    parts: dict[Split, list[tuple[Photo, Pair]]],
    work: Path,
    name: str,
    placing: Placing,
    report: Report,
    stop: Event,
) -> int:
    """Write everything; return how many images were linked."""
    taken: set[str] = set()
    samples: dict[Split, tuple[Sample, ...]] = {}
    linked, done, total = 0, 0, sum(map(len, parts.values()))
    for split, part in parts.items():
        found: list[Sample] = []
        for photo, pair in sorted(part, key=lambda item: (item[1], item[0].file)):
            path = _free(f"{portable_name('_'.join(pair))}/{portable_name(photo.file.name)}", taken)
            linked += _place(photo.file, work / IMAGES / path, placing)
            found.append(Sample(path, pair))
            done += 1
            report(Progress("link", name, done, total))
            if stop.is_set():
                raise StoppedError
        samples[split] = tuple(found)
        write_pairs(
            work / SPLIT_FOLDER / f"{split}_pairs.txt", tuple(sorted({sample.pair for sample in found}))
        )
    write_metadata(work / METADATA, samples)
    return linked


def _place(file: Path, target: Path, placing: Placing) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):  # it may be a link to another photo, which a copy would write through
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    if placing == "link":
        try:
            os.link(file.resolve(), target)  # a link to the photo, not to a link to it
        except OSError:  # another file system, or one without links
            pass
        else:
            return True
    shutil.copyfile(file, target)
    return False


def _free(path: str, taken: set[str]) -> str:
    """The path, with a number if another image has it already, also in another case or Unicode form."""
    stem, dot, suffix = path.rpartition(".")
    number, free = 1, path
    while (key := unicodedata.normalize("NFC", free).casefold()) in taken:
        number += 1
        free = f"{stem}-{number}{dot}{suffix}"
    taken.add(key)
    return free
