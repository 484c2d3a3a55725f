"""An index with labels: vectors that were kept, as a benchmark to train on.

Only methods whose image side is the frozen backbone can learn from them, and the vectors must be the
backbone's own: those of an index that a backbone, or a model of such a method, made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from refiner_cli.data.benchmark import SPLITS, Sample, Split
from refiner_cli.data.create.create import SplitOptions, split_photos
from refiner_cli.data.create.photos import Photo, one_spelling
from refiner_cli.data.create.tables import read_table
from refiner_cli.data.labels import Pair
from refiner_cli.errors import DatasetError, UsageError
from refiner_cli.files import atomic_file
from refiner_cli.inference.encoded import EncodedBenchmark
from refiner_cli.inference.index import Index
from refiner_cli.inference.sources.noted import NotedPlaces
from refiner_cli.plugins import method_class
from refiner_cli.settings import Layer

LABELS = "labels.jsonl"  # in a run: path, state, object and split of every image
# How labels without splits are held out: the first that the images suffice for.
HELD_OUT = (SplitOptions(0.2), SplitOptions(0.0), SplitOptions(all_train=True))
Parts = dict[Split, list[tuple[Photo, Pair]]]


def labelled_benchmark(index: Index, labels: Path) -> EncodedBenchmark:
    """The images of an index that a table labels.

    Args:
        labels: CSV, TSV or JSON lines with path, state, object and, optionally, split. Paths are those of
            the index, or lead to the same files. Without splits, pairs and images are held out as
            ``refiner dataset create`` does; where there are too few, no pair is unseen, or none is held out.

    Raises:
        DatasetError: the table cannot be understood, or names images that the index does not have.
        ModelFileError: a part of the index is missing or damaged.
    """
    photos, _ = one_spelling(read_table(labels).photos)
    given = any(photo.split for photo in photos)
    parts = None if given else next(filter(None, (try_to_split(photos, held_out) for held_out in HELD_OUT)))
    return with_kept_vectors(index, labels, parts or split_photos(photos, SplitOptions()))


def try_to_split(photos: Sequence[Photo], options: SplitOptions) -> Parts | None:
    """The photos by split; None where they are too few for that."""
    try:
        return split_photos(photos, options)
    except DatasetError:
        return None


def with_kept_vectors(
    index: Index, labels: Path, parts: Mapping[Split, Sequence[tuple[Photo, Pair]]]
) -> EncodedBenchmark:
    """A benchmark of labelled images, with the vectors that an index keeps of them."""
    known: dict[str, tuple[int, int]] = {}  # by name and by file: part, row
    noted = NotedPlaces(index.info.places)
    kept = []
    for number, part in enumerate(index.info.parts):
        kept.append(index.vectors(part).composition)
        for place, row in enumerate(index.rows(part)):
            if row.status == "ok":
                known.update(dict.fromkeys((row.path, noted.locate(row.path)), (number, place)))
    samples: dict[Split, tuple[Sample, ...]] = {}
    vectors = {}
    for split in SPLITS:
        rows, found = [], []
        for photo, pair in sorted(parts[split], key=lambda item: str(item[0].file)):
            name = find_name(photo.file, labels.parent, known)
            rows.append(kept[known[name][0]][known[name][1]])
            found.append(Sample(name, pair))
        samples[split] = tuple(found)
        vectors[split] = torch.stack(rows) if rows else torch.empty(0, index.info.width)
    pairs = {split: tuple(sorted({sample.pair for sample in samples[split]})) for split in SPLITS}
    fingerprint = index.info.model.get("backbone_fingerprint", "")
    return EncodedBenchmark(index.folder.resolve().name, index.folder, pairs, samples, vectors, fingerprint)


def find_name(file: Path, folder: Path, known: Mapping[str, tuple[int, int]]) -> str:
    """What an index calls a file of a table in ``folder``. Raises DatasetError if it does not have it."""
    written = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else str(file)
    for name in (written, str(file), str(file.resolve())):
        if name in known:
            return name
    raise DatasetError(
        f"The index has no readable image {written}.",
        hint="Write paths as the index has them, relative to what was indexed, or update the index.",
    )


def index_layer(index: Index) -> Layer:
    """The settings that follow from training on an index: its backbone, and a method that can learn there.

    Raises:
        UsageError: its vectors are not a backbone's, or it does not say whose they are.
    """
    info = index.info
    if not method_class(info.method).frozen_image_side:
        raise UsageError(
            f"The vectors of {index.folder} come from a trained {info.method}, which changes the image "
            "tower: no other training can start above them.",
            hint="Make an index with the backbone alone: refiner index BACKBONE PHOTOS -o DIR.",
        )
    if "backbone" not in info.model:
        raise UsageError(
            f"The index {index.folder} does not say which backbone made it.",
            hint="Run 'refiner index' again.",
        )
    values = {"method": "csp", "backbone": info.model["backbone"], "pretrained": info.model["pretrained"],
              "calibration": {"tta_shifts": [int(info.model["views"])]}}  # fmt: skip
    return f"the index {index.folder}", values


def write_labels(file: Path, benchmark: EncodedBenchmark) -> None:
    """Keep labels and splits, so that the run can be resumed and evaluated."""
    lines = [
        json.dumps({"path": s.path, "state": s.pair[0], "object": s.pair[1], "split": split})
        for split in SPLITS
        for s in benchmark.samples[split]
    ]
    with atomic_file(file) as part:
        part.write_text("\n".join(lines) + "\n", "utf-8")
