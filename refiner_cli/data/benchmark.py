"""A benchmark: a folder in the field's format, read into a label space and three lists of images.

::

    <root>/images/...
    <root>/compositional-split-natural/{train,val,test}_pairs.txt
    <root>/metadata_compositional-split-natural.t7

The metadata file is a pickle; see :mod:`refiner_cli.data.metadata` for how it is read. Decoding
images is not done here.
"""

from __future__ import annotations

import hashlib
import os
import statistics
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from refiner_cli.data.labels import LabelSpace, Pair
from refiner_cli.data.lists import read_text
from refiner_cli.data.metadata import load_plain
from refiner_cli.data.safe_paths import relative
from refiner_cli.errors import DatasetError
from refiner_cli.printable import quoted

Split = Literal["train", "val", "test"]
World = Literal["closed", "open"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SPLIT_FOLDER = "compositional-split-natural"
METADATA = "metadata_compositional-split-natural.t7"
IMAGES = "images"
Row = dict[str, str]  # one line of the metadata
ROW_KEYS = ("image", "attr", "obj", "set")


@dataclass(frozen=True)
class Sample:
    """One labelled image; ``path`` is relative to the benchmark's images folder."""

    path: str
    pair: Pair


@dataclass(frozen=True)
class Benchmark:
    """A dataset ready to use. Build it with :func:`load_benchmark`."""

    name: str
    root: Path
    pairs: dict[Split, tuple[Pair, ...]]
    samples: dict[Split, tuple[Sample, ...]]

    @property
    def images(self) -> Path:
        return self.root / IMAGES

    @cached_property
    def vocabulary(self) -> LabelSpace:
        """Every pair of any split: what a model of this benchmark is made for."""
        every = {pair for split in SPLITS for pair in self.pairs[split]}
        return LabelSpace.from_pairs(every, self.pairs["train"])

    @property
    def states(self) -> tuple[str, ...]:
        return self.vocabulary.states

    @property
    def objects(self) -> tuple[str, ...]:
        return self.vocabulary.objects

    def label_space(self, split: Split, world: World = "closed") -> LabelSpace:
        """The candidates of a split: its own and the training pairs, or every combination.

        Raises DatasetError if an image of the split shows a pair that is not a candidate of it.
        """
        if world == "open":
            return self.vocabulary.open_world()
        own = {*self.pairs[split], *self.pairs["train"]}
        odd = next((sample for sample in self.samples[split] if sample.pair not in own), None)
        if odd is not None:
            raise DatasetError(
                f"The image {odd.path} of the split {split!r} of {self.root} shows {' '.join(odd.pair)}, "
                f"which is neither in {split}_pairs.txt nor in train_pairs.txt.",
                hint="Add the pair to the list of its split, or leave the image out.",
            )
        return self.vocabulary.with_pairs(own)

    def without(self, unreadable: Collection[str]) -> Benchmark:
        """This benchmark without some images of the training and validation splits, by path.

        Raises DatasetError if a split has no other image.
        """
        if not unreadable:
            return self
        samples = dict(self.samples)
        splits: tuple[Split, ...] = ("train", "val")
        for split in splits:
            samples[split] = tuple(one for one in self.samples[split] if one.path not in unreadable)
            if self.samples[split] and not samples[split]:
                raise DatasetError(f"No image of the split {split!r} of {self.root} can be read.")
        return replace(self, samples=samples)

    def require(self, split: Split) -> None:
        """Raise DatasetError if a split has no image."""
        if not self.samples[split]:
            raise DatasetError(
                f"{self.root} has no images for the split {split!r}: there is nothing to measure on.",
                hint="Hold some out: 'refiner dataset create' without --all-train.",
            )

    def images_per_pair(self) -> float:
        """The median number of training images of a training pair."""
        counts = Counter(sample.pair for sample in self.samples["train"])
        return statistics.median(counts[pair] for pair in self.pairs["train"])

    def paths(self, split: Split) -> Iterator[Path]:
        return (self.images / sample.path for sample in self.samples[split])

    def fingerprint(self) -> str:
        """16 hex digits over every image path, label and split: what a run was trained on."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for split in SPLITS:
            for pair in self.pairs[split]:
                digest.update(f"{split}\t{pair[0]}\t{pair[1]}\n".encode())
            for sample in self.samples[split]:
                digest.update(f"{sample.path}\t{sample.pair[0]}\t{sample.pair[1]}\n".encode())
        return digest.hexdigest()[:16]


def read_pairs(file: Path, separator: str | None = None, *, may_be_empty: bool = False) -> tuple[Pair, ...]:
    """Read a pair list of a dataset: one "state object" per line, with the exact spelling of the file.

    With another ``separator`` than white space, names may hold spaces. Lists that users write are
    read by :mod:`refiner_cli.data.lists`, which accepts more. Raises DatasetError naming file and line.
    """
    if not file.exists():
        raise DatasetError(
            f"The pair list {file} does not exist.",
            hint="A dataset folder holds compositional-split-natural/{train,val,test}_pairs.txt.",
        )
    pairs: dict[Pair, int] = {}
    for number, line in enumerate(read_text(file, "pair list").split("\n"), 1):
        if not line.strip():
            continue
        words = [word.strip() for word in line.split(separator)]
        if len(words) != 2 or not all(words):
            raise DatasetError(
                f"{file}, line {number}: {line!r} is not a pair.",
                hint=f"Each line holds one state and one object, with {separator or 'a space'} between them.",
            )
        pair = (words[0], words[1])
        if pair in pairs:
            raise DatasetError(f"{file}, line {number}: '{line}' is already in line {pairs[pair]}.")
        pairs[pair] = number
    if not pairs and not may_be_empty:
        raise DatasetError(f"The pair list {file} is empty.")
    return tuple(pairs)


def read_metadata(file: Path) -> list[Row]:
    """Read the metadata list without running anything it names; each row has string values.

    Raises DatasetError for a missing, damaged or hostile file, or a row without the four keys.
    """
    try:
        rows = load_plain(file)
    except FileNotFoundError:
        raise DatasetError(f"The metadata file {file} does not exist.") from None
    except Exception as error:  # noqa: BLE001 - a damaged or hostile file can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(
            f"The metadata file {file} cannot be read safely ({reason}).",
            hint="It must be a list of plain dictionaries saved by torch.save.",
        ) from None
    if not isinstance(rows, list):
        raise DatasetError(f"The metadata file {file} does not hold a list of rows.")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ROW_KEYS):
            raise DatasetError(
                f"{file}, row {number}: the keys {', '.join(ROW_KEYS)} with text values are needed."
            )
        if not all(_is_utf8(row[key]) for key in ROW_KEYS):
            raise DatasetError(f"{file}, row {number}: {row} holds text that is not Unicode.")
    return rows


def _is_utf8(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def used_rows(rows: Iterable[Row], known: Container[Pair]) -> Iterator[tuple[Split, Pair, Row]]:
    """The rows that count, as every published loader takes them: in a split, with a known pair.

    Published rows without a label have the state ``NA``, which no published pair list holds. A user's
    photos may show a state of that name; then it is in the pair lists, and counts.
    """
    splits = {str(split): split for split in SPLITS}
    for row in rows:
        split, pair = splits.get(row["set"]), (row["attr"], row["obj"])
        if split is not None and pair in known:
            yield split, pair, row


def load_benchmark(root: Path | str, name: str | None = None) -> Benchmark:
    """Read a prepared benchmark folder. Images are not opened.

    Raises:
        DatasetError: a part is missing or malformed, or the training split has no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(
            f"The dataset folder {root} does not exist.",
            hint="Give a folder, or fetch one: 'refiner download --list' shows what there is.",
        )
    if not (root / SPLIT_FOLDER).exists() and not (root / METADATA).exists():
        if (root / "run.json").is_file():
            raise DatasetError(
                f"{root} is a training's run, not a dataset.",
                hint=f"Continue it: refiner train --resume --out {quoted(root)}",
            )
        raise DatasetError(
            f"{root} is not a dataset: it has no {SPLIT_FOLDER} folder.",
            hint="If it holds your photos, make a dataset of them: "
            f"refiner dataset create {quoted(root)} --out DIR",
        )
    pairs = {
        split: read_pairs(root / SPLIT_FOLDER / f"{split}_pairs.txt", may_be_empty=split != "train")
        for split in SPLITS
    }
    known = {pair for split in SPLITS for pair in pairs[split]}
    samples: dict[Split, list[Sample]] = {split: [] for split in SPLITS}
    for split, pair, row in used_rows(read_metadata(root / METADATA), known):
        try:
            samples[split].append(Sample(relative(row["image"]), pair))
        except ValueError as reason:
            raise DatasetError(
                f"{root / METADATA} is refused: it names the image {row['image']!r}, {reason}."
            ) from None
    for split in SPLITS:
        # A few photos may all be for training; a list of pairs without any of their images is a fault.
        if not samples[split] and (pairs[split] or split == "train"):
            raise DatasetError(f"{root / METADATA} lists no image for the split {split!r}.")
    return Benchmark(
        name=name or os.fsencode(root.resolve().name).decode("utf-8", "backslashreplace"),
        root=root,
        pairs=pairs,
        samples={split: tuple(found) for split, found in samples.items()},
    )


def write_pairs(file: Path, pairs: tuple[Pair, ...]) -> None:
    """Write a pair list that :func:`read_pairs` reads back."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{s} {o}\n" for s, o in pairs), "utf-8", newline="\n")


def write_metadata(file: Path, samples: dict[Split, tuple[Sample, ...]]) -> None:
    """Write the metadata list in the published form."""
    rows = [
        {"image": sample.path, "attr": sample.pair[0], "obj": sample.pair[1], "set": split}
        for split, found in samples.items()
        for sample in found
    ]
    save_rows(file, rows)


def save_rows(file: Path, rows: list[Row]) -> None:
    """Write a metadata list that :func:`read_metadata` reads back."""
    import torch

    torch.save(rows, file)
