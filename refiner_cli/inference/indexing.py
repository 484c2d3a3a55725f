"""From images to an index, and from an index to rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from refiner_cli.core.models.base import ImageVectors, Model
from refiner_cli.errors import UsageError
from refiner_cli.inference.decode_pool import DecodeResult
from refiner_cli.inference.decoding import QueuedImage, Wanted, want_all
from refiner_cli.inference.fingerprints import (
    preprocessing_fingerprint,
    score_fingerprint,
    vector_fingerprint,
)
from refiner_cli.inference.formats import ImageRow
from refiner_cli.inference.index import PART_SIZE, Index, IndexInfo, IndexRow, is_index
from refiner_cli.inference.index_update import Encoded, IndexChanges, IndexUpdate
from refiner_cli.inference.predict import compute_batches, unreadable_sentence
from refiner_cli.inference.recogniser import Recogniser
from refiner_cli.inference.scan import FileVersion, ImageFile, row_name


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


def open_for_writing(
    folder: Path,
    recogniser: Recogniser,
    model: str,
    method: str,
    places: Sequence[str],
    part_size: int = PART_SIZE,
) -> Index:
    """The index in a folder, or a new one there.

    Args:
        model: where the model lies, or its name.
        places: what the images come from.
        part_size: images per part of a new index.

    Raises:
        UsageError: the index is another model's or holds other images, the folder holds something else or
            cannot be written to, or the method has no index.
        ModelFileError: the index is damaged.
    """
    info = empty_index_info(recogniser, model, method, places, part_size)
    if not is_index(folder):
        return Index.create(folder, info)
    index = Index.open(folder)
    check_made_by(index, recogniser)
    if index.info.places != list(places):
        raise UsageError(
            f"The index {folder} holds images of {', '.join(index.info.places)}.",
            hint="Give the same PATHs, or choose another folder for the index.",
        )
    return index


def empty_index_info(
    recogniser: Recogniser, model: str, method: str, places: Sequence[str], part_size: int
) -> IndexInfo:
    """What is written of a new index: whose vectors it keeps, and of which images.

    Raises:
        UsageError: the method has no index.
    """
    check_indexable(recogniser.model)
    made = vector_facts(recogniser) | backbone_facts(recogniser.model) | {"path": model}
    roles, width = vector_roles(recogniser.model), recogniser.model.backbone.embed_dim
    return IndexInfo.empty(made, method, roles, width, places, part_size)


def vector_facts(recogniser: Recogniser) -> dict[str, str]:
    """What decides the vectors of an image, in digests."""
    return {"vectors": vector_fingerprint(recogniser.model),
            "preprocessing": preprocessing_fingerprint(recogniser.model),
            "precision": str(recogniser.precision).removeprefix("torch.")}  # fmt: skip


def check_made_by(index: Index, recogniser: Recogniser) -> None:
    """Raise UsageError unless an index keeps the vectors that a model gives its images now."""
    kept, model = index.info.model, recogniser.model
    wanted = vector_facts(recogniser) | backbone_facts(model)
    compared = ["vectors", "preprocessing"]
    if "vectors" not in kept:  # an index that an earlier version made notes the model, calibration included
        wanted, compared = wanted | {"model": score_fingerprint(model)}, ["model", "preprocessing"]
    if all(kept.get(name) == wanted[name] for name in compared):
        return
    own = str(kept.get("views", ""))
    if own.isdecimal() and kept.get("vectors") == vector_fingerprint(model, int(own)):
        raise UsageError(
            f"The index {index.folder} keeps vectors of {own} shifted views of each image, and the model "
            f"takes {wanted['views']}.",
            hint=f"Make a new index, or calibrate the model with --set calibration.tta_shifts={own}.",
        )
    raise UsageError(
        f"The index {index.folder} was made with another model.",
        hint="Give the model it was made with, or make an index with this one.",
    )


def backbone_facts(model: Model) -> dict[str, str]:
    """Which backbone a model has, for a training that starts from the index (see ``labelled_index``)."""
    spec = model.backbone.spec
    return {"backbone": spec.name, "pretrained": spec.pretrained, "views": str(model.calibration.tta_shifts),
            "backbone_fingerprint": model.backbone.use_fingerprint()}  # fmt: skip


def index_images(
    recogniser: Recogniser,
    index: Index,
    images: Iterable[ImageFile],
    *,
    batch: int,
    workers: int,
    log: Callable[[str], None],
    progress: Callable[[int], None] = lambda _: None,
    out_of_reach: Callable[[str], bool] = lambda _: False,
) -> IndexChanges:
    """Make an index, which the caller has locked, hold exactly the given images.

    Args:
        out_of_reach: asked at the end about the images that it holds beside them, and that it then keeps.

    Raises:
        ModelFileError: a part is missing or damaged.
    """
    update = IndexUpdate(index, progress)
    for encoded in encode_images(
        recogniser, index.info, images, batch=batch, workers=workers, wanted=update.wanted, log=log
    ):
        update.take(encoded)
    return update.finish(out_of_reach)


def encode_images(
    recogniser: Recogniser,
    info: IndexInfo,
    images: Iterable[ImageFile],
    *,
    batch: int,
    workers: int,
    log: Callable[[str], None],
    wanted: Wanted = want_all,
) -> Iterator[Encoded]:
    """What an index keeps of every wanted image, in order."""

    def compute(part: Tensor) -> list[dict[str, Tensor]]:
        return split_vectors(recogniser.encode(part), info.roles)

    for queued, pixels, vectors in compute_batches(
        recogniser, images, compute, batch=batch, workers=workers, wanted=wanted, log=log
    ):
        yield encoded_image(queued, pixels, vectors, info)


def encoded_image(
    queued: QueuedImage, pixels: DecodeResult, vectors: dict[str, Tensor] | None, info: IndexInfo
) -> Encoded:
    """What an index keeps of an image; ``pixels`` says why there are no vectors, if there are none."""
    name, version = queued.image.name, queued.version
    if vectors is not None:
        return Encoded(IndexRow(name, version.size, version.modified, "ok"), vectors)
    blank = {role: torch.zeros(info.width, dtype=torch.float16) for role in info.roles}
    error = row_name(pixels) if isinstance(pixels, str) else None
    return Encoded(IndexRow(name, version.size, version.modified, "error", error), blank)


def split_vectors(vectors: ImageVectors, roles: Sequence[str]) -> list[dict[str, Tensor]]:
    """The vectors of images as an index keeps them: per image, by role, ``D`` float16 on the CPU."""
    half = {role: getattr(vectors, role).to("cpu", torch.float16) for role in roles}
    return [{role: half[role][i] for role in roles} for i in range(len(vectors))]


def predict_index(
    recogniser: Recogniser, index: Index, wanted: Wanted, top_k: int, batch: int
) -> Iterator[ImageRow]:
    """The rows of an index's wanted images, from their vectors alone."""
    for part in index.info.parts:
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


def on_device(vectors: ImageVectors, places: Sequence[int] | slice, recogniser: Recogniser) -> ImageVectors:
    """Some rows of stored vectors, float32 on the model's device."""
    device = recogniser.model.device
    composition, state, obj = (
        getattr(vectors, role)[places].to(device, torch.float32)
        for role in ("composition", "state", "object")
    )
    return ImageVectors(composition, state, obj)
