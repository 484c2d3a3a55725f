"""Photos in folders named after their pairs: ``state_object/`` or ``state/object/``.

Folders ``train``, ``val`` and ``test`` above them are the splits. Folders and files that other
programs leave behind are passed over, as are links that lead back into the same tree.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from refiner_cli.data.benchmark import Split
from refiner_cli.data.create.photos import Photo, PhotoCollection, clean_name, require_unicode
from refiner_cli.data.image_file import IMAGE_SUFFIXES
from refiner_cli.data.labels import Pair, name_key
from refiner_cli.data.safe_paths import OUTPUT_MARKER, is_foreign
from refiner_cli.errors import DatasetError
from refiner_cli.files import reason_of

_SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
MOST_FOLDERS = 10  # folders named in a message
UNKNOWN_FOLDER = "_unknown"  # in place of a state or an object that nobody has said
LAYOUT = "It must hold folders named state_object, or state folders with object folders in them."


@dataclass
class _Tree:
    """A folder of photos, each real folder visited once."""

    root: Path
    skipped_links: int = 0
    other_files: Counter[str] = field(default_factory=Counter)  # suffix -> files that are not images
    unknown: list[Path] = field(default_factory=list)  # folders of that name, which are not visited
    _images: dict[Path, list[Path]] = field(default_factory=dict)
    _folders: dict[Path, list[Path]] = field(default_factory=dict)
    _visited: set[Path] = field(default_factory=set)
    _real_root: Path = field(init=False)

    def __post_init__(self) -> None:
        self._real_root = self.root.resolve()

    def images(self, folder: Path) -> list[Path]:
        """The image files directly in a folder."""
        self._look(folder)
        return self._images[folder]

    def folders(self, folder: Path) -> list[Path]:
        """The folders directly in a folder that may hold photos."""
        self._look(folder)
        return self._folders[folder]

    def below(self, folder: Path) -> Iterator[Path]:
        """All image files in a folder and the folders in it."""
        waiting = [folder]
        while waiting:
            here = waiting.pop()
            yield from self.images(here)
            waiting += reversed(self.folders(here))

    def holds_images(self, folder: Path) -> bool:
        return any(True for _ in self.below(folder))

    def _look(self, folder: Path) -> None:
        if folder in self._images:
            return
        images, folders = [], []
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise DatasetError(f"The folder {folder} cannot be read ({reason_of(error)}).") from None
        if any(entry.name == OUTPUT_MARKER for entry in found):  # images that refiner made
            found = []
        for entry in found:
            path = folder / entry.name
            is_folder = _is_folder(entry)
            if is_foreign(entry.name, folder=is_folder):
                continue
            if is_folder and entry.name == UNKNOWN_FOLDER:
                self.unknown.append(path)
            elif is_folder:
                if self._is_new(path, link=entry.is_symlink()):
                    folders.append(path)
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                images.append(path)
            else:
                self.other_files[path.suffix.lower() or "no ending"] += 1
        self._images[folder], self._folders[folder] = images, folders

    def _is_new(self, folder: Path, *, link: bool) -> bool:
        """Whether a folder is to be visited; a link is not if it leads into this tree or above it."""
        real = folder.resolve()
        inside = real.is_relative_to(self._real_root) or self._real_root.is_relative_to(real)
        if real in self._visited or (link and inside):
            self.skipped_links += 1
            return False
        self._visited.add(real)
        return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def read_folders(source: Path) -> PhotoCollection:
    """Read a folder of photos; the labels are as they are spelt there.

    Raises:
        DatasetError: a folder cannot be read, or names cannot be understood; names it.
    """
    tree = _Tree(source)
    tops = [folder for folder in tree.folders(source) if tree.holds_images(folder)]
    splits = {top: _SPLIT_FOLDERS.get(name_key(top.name)) for top in tops}
    notes: list[str] = []
    photos: list[Photo] = []
    unlabelled = list(tree.images(source))
    if tops and all(splits.values()):
        names = ", ".join(top.name for top in tops)
        notes.append(f"the folders {names} are taken as the splits")
        inner = [folder for top in tops for folder in tree.folders(top) if tree.holds_images(folder)]
        pairs, loose = _label(tree, inner)
        notes += _reading_of_nested(inner, pairs)
        unlabelled += [image for top in tops for image in tree.images(top)]
        photos = [
            Photo(file, pairs[folder], splits[top])
            for top in tops
            for folder in pairs
            if folder.is_relative_to(top)
            for file in tree.below(folder)
        ]
    else:
        if chosen := [top for top in tops if splits[top]]:
            others = [top for top in tops if not splits[top]]
            raise DatasetError(
                f"{source} holds the split folder {chosen[0].name!r} beside {others[0].name!r}.",
                hint="Put all photos below train, val and test, or none; or use a CSV file.",
            )
        pairs, loose = _label(tree, tops)
        notes += _reading_of_nested(tops, pairs)
        photos = [Photo(file, pair) for folder, pair in pairs.items() for file in tree.below(folder)]
    unlabelled += loose
    if not photos:
        held = f"no images{f' outside of folders named {UNKNOWN_FOLDER}' if tree.unknown else ''}"
        if unlabelled:
            held = f"{len(unlabelled)} images, but none in a folder that names a pair"
        raise DatasetError(f"{source} holds {held}.", hint=LAYOUT)
    return PhotoCollection(tuple(photos), tuple(unlabelled), (*notes, *_passed_over(tree)))


def _label(tree: _Tree, tops: Iterable[Path]) -> tuple[dict[Path, Pair], list[Path]]:
    """The pair of each innermost named folder, and the images beside those folders.

    A folder of one word with folders of images in it is a state, whose folders are its objects.
    """
    states: list[Path] = []
    flat: list[Path] = []
    for top in tops:
        below = any(tree.holds_images(folder) for folder in tree.folders(top))
        is_state = below and (not tree.images(top) or len(_name_words(top.name)) < 2)
        (states if is_state else flat).append(top)
    if states and flat:
        raise DatasetError(
            f"{tree.root} mixes state/object folders ({states[0].name}) with state_object folders "
            f"({flat[0].name}).",
            hint="Use one way for all, or a CSV file.",
        )
    by_name = _read_names([top.name for top in flat])
    pairs = {top: by_name[top.name] for top in flat}
    for top in states:
        for inner in tree.folders(top):
            if tree.holds_images(inner):
                pairs[inner] = (clean_name(top.name), clean_name(inner.name))
    for folder, pair in pairs.items():
        require_unicode(" ".join(pair), str(folder))
        if not all(pair):
            raise DatasetError(f"The name of {folder} holds no state and object.", hint=LAYOUT)
    return pairs, [image for top in states for image in tree.images(top)]


def _name_words(name: str) -> list[str]:
    return re.split(r"[\s_]+", name.strip("_ "))


def _read_names(names: Iterable[str]) -> dict[str, Pair]:
    """Pairs from ``state_object`` names.

    With more than two words the cut is where a name is known from the other folders: beside
    ``red_apple``, ``red_bell_pepper`` is a red one. Raises DatasetError where that does not decide.
    """
    words = {name: _name_words(name) for name in names}
    if single := [name for name, parts in words.items() if len(parts) < 2]:
        noun, verb = ("name", "is") if len(single) == 1 else ("names", "are")
        more = f" and {len(single) - MOST_FOLDERS} more" if len(single) > MOST_FOLDERS else ""
        raise DatasetError(
            f"The folder {noun} {', '.join(map(repr, single[:MOST_FOLDERS]))}{more} {verb} not of the form "
            "state_object.",
            hint="Rename what is no pair, use state/object folders, or list the photos in a CSV file.",
        )
    pairs = {name: (parts[0], parts[1]) for name, parts in words.items() if len(parts) == 2}
    states = {name_key(state) for state, _ in pairs.values()}
    objects = {name_key(obj) for _, obj in pairs.values()}
    for name, parts in words.items():
        if name in pairs:
            continue
        cuts = [(".".join(parts[:i]), ".".join(parts[i:])) for i in range(1, len(parts))]
        known = [(name_key(state) in states) + (name_key(obj) in objects) for state, obj in cuts]
        best = [cut for cut, score in zip(cuts, known, strict=True) if score == max(known)]
        if len(best) != 1:
            options = " or ".join(f"{state!r} + {obj!r}" for state, obj in best)
            raise DatasetError(
                f"The folder name {name!r} can be read as {options}.",
                hint="Use state/object folders, or a CSV file, or a dot inside a name: red_bell.pepper.",
            )
        pairs[name] = best[0]
    return {name: (clean_name(state), clean_name(obj)) for name, (state, obj) in pairs.items()}


def _reading_of_nested(tops: Iterable[Path], pairs: dict[Path, Pair]) -> Iterator[str]:
    """What folders of several words with folders in them are taken for, as their names may be pairs."""
    above = set(tops)
    nested = [(folder, pair) for folder, pair in pairs.items() if folder.parent in above]
    if nested and all(len(_name_words(folder.parent.name)) > 1 for folder, _ in nested):
        folder, (state, obj) = nested[0]
        top = folder.parent.name
        yield (
            f"{top}/{folder.name} is read as the state {state!r} of the object {obj!r}; if {top} is a pair, "
            "put its photos directly into it"
        )


def _passed_over(tree: _Tree) -> Iterator[str]:
    if unknown := sum(1 for folder in tree.unknown for _ in tree.below(folder)):
        yield f"photos in folders named {UNKNOWN_FOLDER}: {unknown}, passed over"
    if tree.skipped_links:
        links = "1 link" if tree.skipped_links == 1 else f"{tree.skipped_links} links"
        yield f"{links} to a folder of the same tree not followed"
    if tree.other_files:
        kinds = ", ".join(f"{suffix} ({count})" for suffix, count in tree.other_files.most_common(5))
        yield f"files that are not images passed over: {kinds}"
