"""From archives as they were published to one folder in the field's format.

The metadata names every image that counts. Each is looked up in the archives and written directly
to its final path: MIT-States' folders lose their spaces, UT-Zappos' images move from brand folders
to ``<Attr>_<Obj>/``, and the name of an archive's top folder does not matter. No second copy is
ever on the disk, and files of an earlier run are kept.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from refiner_cli.data.benchmark import (
    IMAGES,
    METADATA,
    SPLIT_FOLDER,
    SPLITS,
    Row,
    Split,
    read_metadata,
    read_pairs,
    save_rows,
    used_rows,
    write_pairs,
)
from refiner_cli.data.disk import os_errors_as, require_free_space
from refiner_cli.data.download.archive import Archive
from refiner_cli.data.download.catalog import Counts, Dataset
from refiner_cli.data.labels import Pair
from refiner_cli.data.progress import Report
from refiner_cli.data.safe_paths import portable
from refiner_cli.errors import DatasetError, FetchError


@dataclass(frozen=True)
class PathRules:
    """How the operating system treats file names."""

    windows: bool = os.name == "nt"
    folds_case: bool = sys.platform in {"win32", "darwin"}


@dataclass(frozen=True)
class Place:
    """A file in one of the archives."""

    archive: Archive
    name: str


def prepare(
    dataset: Dataset,
    archives: Sequence[Archive],
    work: Path,
    *,
    report: Report,
    stop: Event,
    rules: PathRules | None = None,
) -> None:
    """Write the dataset into the folder ``work``, which may hold files of an earlier run.

    Raises:
        FetchError: an archive is damaged, hostile or not the right one, or the disk is full.
        DatasetError: the metadata is malformed or hostile, or the release is one to refuse.
        StoppedError: ``stop`` was set; the next call resumes.
    """
    with os_errors_as(f"preparing {work}"):
        work.mkdir(parents=True, exist_ok=True)
        if dataset.kind == "vectors":
            wanted = {work / file: _find_file(dataset, archives, file) for file in dataset.files}
        else:
            rows = _write_splits(dataset, archives, work)
            places = _locate(rows, archives)
            wanted = _targets(places, work / IMAGES, rules or PathRules())
        _create_folders(wanted, work)
        for archive in archives:
            archive.unpack({t: p.name for t, p in wanted.items() if p.archive is archive}, report, stop)


def _write_splits(dataset: Dataset, archives: Sequence[Archive], work: Path) -> list[Row]:
    """Write pair lists and metadata; return the rows that count."""
    archive, root = _find_splits(dataset, archives)
    (work / SPLIT_FOLDER).mkdir(exist_ok=True)
    names = {
        work / SPLIT_FOLDER / f"{split}_pairs.txt": f"{root}{SPLIT_FOLDER}/{split}_pairs.txt"
        for split in SPLITS
    }
    for file, name in {**names, work / METADATA: root + METADATA}.items():
        if name not in archive.members:
            raise FetchError(f"{archive.path} has no {name}.", hint=_wrong_archive(dataset))
        file.write_bytes(archive.read(name))
    pairs = {
        split: read_pairs(work / SPLIT_FOLDER / f"{split}_pairs.txt", dataset.separator) for split in SPLITS
    }
    rows = read_metadata(work / METADATA)
    if dataset.separator:  # its names hold spaces, which the published folder format cannot
        pairs = {split: tuple((_dotted(s), _dotted(o)) for s, o in pairs[split]) for split in SPLITS}
        rows = [{**row, "attr": _dotted(row["attr"]), "obj": _dotted(row["obj"])} for row in rows]
        for split in SPLITS:
            write_pairs(work / SPLIT_FOLDER / f"{split}_pairs.txt", pairs[split])
        save_rows(work / METADATA, rows)
    refuse_withdrawn(dataset, pairs)
    return [row for _, _, row in used_rows(rows, {pair for split in SPLITS for pair in pairs[split]})]


def refuse_withdrawn(dataset: Dataset, pairs: dict[Split, tuple[Pair, ...]]) -> None:
    """Raise DatasetError, naming it, for a release that the catalogue says must not be used."""
    every = {pair for split in SPLITS for pair in pairs[split]}
    found = Counts(
        states=len({s for s, _ in every}),
        objects=len({o for _, o in every}),
        train_pairs=len(set(pairs["train"])),
    )
    for release in dataset.refused:
        if not found.differences(release.counts):
            raise DatasetError(
                f"This is {release.name}, which must not be used. {release.reason}.",
                hint=f"Get the current release: 'refiner download {dataset.name}', or see {dataset.home}.",
            )


def _find_splits(dataset: Dataset, archives: Sequence[Archive]) -> tuple[Archive, str]:
    """The archive with the pair lists, and the folder in it that holds them: ``"top/"`` or ``""``."""
    ending = f"{SPLIT_FOLDER}/train_pairs.txt"
    found = [
        (archive, name.removesuffix(ending))
        for archive in archives
        for name in archive.members
        if name == ending or name.endswith("/" + ending)
    ]
    named = [(a, root) for a, root in found if root.rstrip("/").rsplit("/", 1)[-1] in dataset.split_folders]
    fitting = named or found
    if len(fitting) != 1:
        what = f"{len(fitting)} folders of pair lists" if fitting else "no pair lists"
        raise FetchError(
            f"{_paths_of(archives)}: there are {what} for {dataset.title}.", hint=_wrong_archive(dataset)
        )
    return fitting[0]


def _find_file(dataset: Dataset, archives: Sequence[Archive], file: str) -> Place:
    for archive in archives:
        for name in archive.members:
            if name == file or name.endswith("/" + file):
                return Place(archive, name)
    raise FetchError(f"{_paths_of(archives)}: the file {file} is missing.", hint=_wrong_archive(dataset))


def _locate(rows: Sequence[Row], archives: Sequence[Archive]) -> dict[str, Place]:
    """Where each image is, by its path in the metadata.

    ``_image``, the path in the publisher's own tree, is looked up where ``image`` is missing. Of
    several matching files, the one in the folder that most images come from is taken.
    """
    by_name: dict[str, list[tuple[str, Place]]] = {}
    for archive in archives:
        for name in archive.members:
            path = _comparable(name)
            by_name.setdefault(path.rsplit("/", 1)[-1], []).append((path, Place(archive, name)))
    fits: dict[str, list[tuple[str, Place]]] = {}
    folders: Counter[str] = Counter()
    for row in rows:
        fits[row["image"]] = next(
            filter(None, (_fitting(by_name, row[k]) for k in ("image", "_image") if k in row)), []
        )
        folders.update(folder for folder, _ in fits[row["image"]])
    missing = [image for image, places in fits.items() if not places]
    if missing:
        raise FetchError(
            f"{_paths_of(archives)}: {len(missing)} of the {len(fits)} images that the metadata names "
            f"are missing, for example {missing[0]!r}.",
            hint="An archive is incomplete, or is not the right one.",
        )
    return {image: max(places, key=lambda fit: folders[fit[0]])[1] for image, places in fits.items()}


def _fitting(by_name: dict[str, list[tuple[str, Place]]], path: str) -> list[tuple[str, Place]]:
    """All (folder, place) whose path is ``<folder>/<path>``."""
    wanted = "/" + _comparable(path)
    return [
        (found.removesuffix(wanted[1:]), place)
        for found, place in by_name.get(wanted.rsplit("/", 1)[-1], [])
        if ("/" + found).endswith(wanted)
    ]


def _comparable(path: str) -> str:
    """A form in which paths are equal that differ only by what published scripts and systems change.

    Spaces become underscores (MIT-States), a folder's last dot may be lost or escaped (UT-Zappos'
    ``L.A.M.B.``), accents may be composed or not.
    """
    parts = unicodedata.normalize("NFC", path).replace(" ", "_").split("/")
    return "/".join([*(re.sub(r"(\.|%2E)+$", "", part) for part in parts[:-1]), parts[-1]])


def _targets(places: dict[str, Place], images: Path, rules: PathRules) -> dict[Path, Place]:
    """Where each image goes. Raises DatasetError for names that this system does not allow."""
    targets: dict[Path, Place] = {}
    seen: dict[str, str] = {}
    for image, place in places.items():
        try:
            path = portable(image, windows=rules.windows)
        except ValueError as reason:
            raise DatasetError(
                f"The metadata names the image {image!r}, which is refused: {reason}."
            ) from None
        twin = seen.setdefault(path.casefold() if rules.folds_case else path, image)
        if twin != image:
            raise DatasetError(f"The images {twin!r} and {image!r} would be one file on this system.")
        targets[images / path] = place
    return targets


def _create_folders(wanted: dict[Path, Place], work: Path) -> None:
    for folder in {target.parent for target in wanted}:
        folder.mkdir(parents=True, exist_ok=True)
    total = sum(place.archive.members[place.name] for place in wanted.values())
    written = sum(file.stat().st_size for file in _files(work / IMAGES))
    require_free_space(work, max(0, total - written), f"Unpacking to {work}")


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _dotted(name: str) -> str:
    return ".".join(name.split())


def _paths_of(archives: Sequence[Archive]) -> str:
    return ", ".join(str(archive.path) for archive in archives)


def _wrong_archive(dataset: Dataset) -> str:
    return f"If it is not the right archive, delete it and run the command again; see {dataset.home}."
