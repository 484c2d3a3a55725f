"""Bring an index up to date: encode new and changed images, drop vanished ones, touch nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from refiner_cli.core.models.base import ImageVectors, Model
from refiner_cli.core.runtime.distributed import DistributedContext
from refiner_cli.core.runtime.memory import OomRetry
from refiner_cli.errors import UsageError
from refiner_cli.inference.decoding import decode_batches, make_batches
from refiner_cli.inference.formats import ImageRow
from refiner_cli.inference.index import Index, IndexRow, PartInfo
from refiner_cli.inference.predict import normalise_pixels, stack_pixels, unreadable_sentence
from refiner_cli.inference.recogniser import Recogniser
from refiner_cli.inference.scan import FileVersion, ImageFile, row_name

Wanted = Callable[[ImageFile, FileVersion], bool]


@dataclass(frozen=True)
class Encoded:
    """What encoding gave for an image: a row, and its vectors by role, each ``D``; zeros for an error."""

    row: IndexRow
    vectors: dict[str, Tensor]


@dataclass
class IndexChanges:
    """What an update has to do, and what it did."""

    kept: int = 0
    dropped: int = 0  # vanished images
    encoded: int = 0  # new, changed, or an error before
    errors: int = 0
    stale: dict[str, list[int]] = field(default_factory=dict)  # rows to remove, by part name


def check_indexable(model: Model) -> None:
    """Raise UsageError for a method whose scores need more than vectors."""
    if not model.scores_from_vectors:
        raise UsageError(
            f"An index keeps one vector per image and role; the method {type(model).__name__.lower()} scores "
            "against the patches of the image.",
            hint="Predict from the images instead.",
        )


def vector_roles(model: Model) -> list[str]:
    """The vectors that the model's scores need."""
    return ["composition", *(["state"] if model.has_state_branch else []),
            *(["object"] if model.has_object_branch else [])]  # fmt: skip


def update_index(
    index: Index,
    encode: Callable[[Wanted], Iterator[Encoded]],
    progress: Callable[[int], None] = lambda _: None,
) -> IndexChanges:
    """Make the index hold exactly the images that there are now.

    Args:
        encode: goes through all images, asks of each whether it is wanted, and yields what it computed of
            those that are.
        progress: called with the number of images that are done.

    Raises:
        ModelFileError: a part is missing or damaged.
    """
    changes = IndexChanges()
    index.sweep()
    known = {
        row.path: (part, place, row)
        for part in index.info.parts
        for place, row in enumerate(index.rows(part))
    }  # fmt: skip
    seen: set[str] = set()

    def wanted(image: ImageFile, version: FileVersion) -> bool:
        seen.add(image.name)
        old = known.get(image.name)
        if old is None:
            return True
        part, place, row = old
        if row.status == "ok" and FileVersion(row.size, row.modified) == version:
            changes.kept += 1
            progress(changes.kept + changes.encoded)
            return False
        changes.stale.setdefault(part.name, []).append(place)
        return True

    pending: list[Encoded] = []
    for encoded in encode(wanted):
        pending.append(encoded)
        changes.encoded += 1
        changes.errors += encoded.row.status != "ok"
        progress(changes.kept + changes.encoded)
        if len(pending) == index.info.part_size:
            write_pending(index, pending, changes)
            pending = []
    for path, (part, place, _) in known.items():
        if path not in seen:
            changes.stale.setdefault(part.name, []).append(place)
            changes.dropped += 1
    if pending or changes.stale:
        write_pending(index, pending, changes)
    return changes


def encode_images(
    recogniser: Recogniser,
    images: Iterable[ImageFile],
    wanted: Wanted,
    roles: Sequence[str],
    *,
    batch: int,
    workers: int,
    log: Callable[[str], None],
) -> Iterator[Encoded]:
    """Decode and encode the wanted images, in order; one that cannot be read gives a row that says why."""
    oom_retry = OomRetry(log)
    blank = {role: torch.zeros(recogniser.model.backbone.embed_dim, dtype=torch.float16) for role in roles}
    batches = make_batches(images, batch, wanted)
    for group, results in decode_batches(batches, recogniser.preprocess.crop, workers, log):
        made: list[dict[str, Tensor]] = []
        if any(not isinstance(result, str) for result in results):
            normalised = normalise_pixels(recogniser, stack_pixels(recogniser, group, results))
            made = oom_retry.run(lambda part: encode_part(recogniser, part, roles), normalised)
        for queued, result in zip(group.wanted, results, strict=True):
            name, version = queued.image.name, queued.version
            if isinstance(result, str):
                yield Encoded(
                    IndexRow(name, version.size, version.modified, "error", row_name(result)), blank
                )
            else:
                row = IndexRow(name, version.size, version.modified, "ok")
                yield Encoded(row, made[queued.place])


def encode_part(recogniser: Recogniser, images: Tensor, roles: Sequence[str]) -> list[dict[str, Tensor]]:
    """The vectors of normalised images as an index keeps them: per image, by role, float16 on the CPU."""
    vectors = recogniser.encode(images)
    half = {role: getattr(vectors, role).to("cpu", torch.float16) for role in roles}
    return [{role: half[role][i] for role in roles} for i in range(len(vectors))]


def predict_index(
    recogniser: Recogniser, index: Index, wanted: Wanted, top_k: int, batch: int, ranks: DistributedContext
) -> Iterator[ImageRow]:
    """The rows of an index's wanted images, from their vectors alone; each process takes its parts."""
    for number, part in enumerate(index.info.parts):
        if number % ranks.world_size != ranks.rank:
            continue
        rows, vectors = index.rows(part), index.vectors(part)
        chosen = [
            place
            for place, row in enumerate(rows)
            if wanted(ImageFile(Path(row.path), row.path), FileVersion(row.size, row.modified))
        ]
        for first in range(0, len(chosen), batch):
            places = chosen[first : first + batch]
            made = recogniser.predict_vectors(on_device(vectors, places, recogniser), top_k=top_k)
            for place, prediction in zip(places, made, strict=True):
                row, version = rows[place], FileVersion(rows[place].size, rows[place].modified)
                if row.status == "ok":
                    yield ImageRow(row.path, prediction, "", version)
                else:
                    yield ImageRow(row.path, None, unreadable_sentence(row.path, str(row.error)), version)


def on_device(vectors: ImageVectors, places: Sequence[int], recogniser: Recogniser) -> ImageVectors:
    """Some rows of stored vectors, float32 on the model's device."""
    device = recogniser.model.device
    composition, state, obj = (
        getattr(vectors, role)[places].to(device, torch.float32)
        for role in ("composition", "state", "object")
    )
    return ImageVectors(composition, state, obj)


def write_pending(index: Index, pending: Sequence[Encoded], changes: IndexChanges) -> None:
    """Write a part of new images; the parts that held older states of images lose those rows first."""
    for part in list(index.info.parts):
        places = changes.stale.pop(part.name, None)
        if places:
            remove_rows(index, part, set(places))
    if pending:
        roles = index.info.roles
        stacked = {role: torch.stack([one.vectors[role] for one in pending]) for role in roles}
        index.replace([], [one.row for one in pending], stacked)


def remove_rows(index: Index, part: PartInfo, places: set[int]) -> None:
    """Rewrite a part without some of its rows."""
    rows, vectors = index.rows(part), index.vectors(part)
    kept = [place for place in range(len(rows)) if place not in places]
    chosen = {role: getattr(vectors, role)[kept] for role in index.info.roles}
    index.replace([part], [rows[place] for place in kept], chosen)
