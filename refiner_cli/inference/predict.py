"""Images in, rows out: one row per image, whatever it is like, in constant memory."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from refiner_cli.core.runtime.memory import OomRetry
from refiner_cli.data.crop import Pixels
from refiner_cli.data.safe_paths import path_inside
from refiner_cli.errors import RefinerError
from refiner_cli.files import reason_of
from refiner_cli.inference.attention_maps import draw_attention_map
from refiner_cli.inference.decode_pool import DecodeResult
from refiner_cli.inference.decoding import Batch, QueuedImage, Wanted, decode_batches, ignore_log, want_all
from refiner_cli.inference.formats import ImageRow
from refiner_cli.inference.recogniser import Prediction, Recogniser
from refiner_cli.inference.scan import ImageFile, row_name

Log = Callable[[str], None]
_T = TypeVar("_T")


def predict_files(
    recogniser: Recogniser,
    images: Iterable[ImageFile],
    *,
    top_k: int,
    batch: int,
    workers: int,
    wanted: Wanted = want_all,
    heatmaps: Path | None = None,
    log: Log = ignore_log,
) -> Iterator[ImageRow]:
    """Yield a row for every wanted image, in order; one that cannot be read gives a row that says why.

    Args:
        wanted: asked about every image, in order.
        workers: processes that decode; 0: this one does.
        heatmaps: a folder for an attention map of every image, drawn before its row is yielded.
        log: receives a line when memory runs out, or when a map cannot be written.
    """

    def compute(images: Tensor) -> list[tuple[Prediction, Tensor | None]]:
        made = recogniser.predict_tensor(images, top_k=top_k)
        maps = recogniser.query_attention(images).cpu() if heatmaps else [None] * len(made)
        return list(zip(made, maps, strict=True))

    for queued, pixels, made in compute_batches(
        recogniser, images, compute, batch=batch, workers=workers, wanted=wanted, log=log
    ):
        if made is not None and heatmaps and not isinstance(pixels, str):
            write_attention_map(heatmaps, queued, pixels, made[1], log)
        yield image_row(queued, pixels, made[0] if made else None)


def compute_batches(
    recogniser: Recogniser,
    images: Iterable[ImageFile],
    compute: Callable[[Tensor], list[_T]],
    *,
    batch: int,
    workers: int,
    log: Log,
    wanted: Wanted = want_all,
) -> Iterator[tuple[QueuedImage, DecodeResult, _T | None]]:
    """Decode the wanted images, a batch after the other, and compute something of each, in order.

    Args:
        compute: of preprocessed images ``B x 3 x H x W`` on the model's device, one result per image.

    Yields:
        The file, its pixels ``H x W x 3`` or why there are none, and its result, None without pixels.
    """
    oom_retry = OomRetry(log)
    for group, results in decode_batches(images, batch, recogniser.preprocess.crop, workers, log, wanted):
        made: list[_T] = []
        if any(not isinstance(result, str) for result in results):
            made = oom_retry.run(
                compute, normalise_pixels(recogniser, stack_pixels(recogniser, group, results))
            )
        for queued, result in zip(group.wanted, results, strict=True):
            yield queued, result, None if isinstance(result, str) else made[queued.place]


def image_row(queued: QueuedImage, pixels: DecodeResult, prediction: Prediction | None) -> ImageRow:
    """The row of an image; ``pixels`` says why there is no prediction, if there is none."""
    image = queued.image
    error = unreadable_sentence(image.where, row_name(pixels)) if isinstance(pixels, str) else ""
    return ImageRow(image.name, prediction, error, queued.version, image.inputs)


def stack_pixels(recogniser: Recogniser, batch: Batch, results: list[DecodeResult]) -> Pixels:
    """``B x H x W x 3`` of a complete batch, by place; black where a file is not wanted or gave no pixels."""
    crop = recogniser.preprocess.crop
    pixels = np.zeros((batch.size, crop.height, crop.width, 3), np.uint8)
    for queued, result in zip(batch.wanted, results, strict=True):
        if not isinstance(result, str):
            pixels[queued.place] = result
    return pixels


def normalise_pixels(recogniser: Recogniser, pixels: Pixels) -> Tensor:
    """``B x H x W x 3`` uint8 -> preprocessed images ``B x 3 x H x W`` on the model's device."""
    return recogniser.preprocess.normalise(torch.from_numpy(pixels).to(recogniser.model.device))


def unreadable_sentence(place: str, reason: str) -> str:
    """What the row of an image that cannot be read says."""
    return f"The image {place} cannot be read ({reason})."


def write_attention_map(
    folder: Path, queued: QueuedImage, pixels: Pixels, maps: Tensor | None, log: Log
) -> None:
    """Draw an image's maps ``K x L`` below a folder. A name that the file system refuses costs its map only.

    Raises:
        RefinerError: the disk is full, or the folder cannot be written to.
    """
    if maps is None:
        return
    file = path_inside(folder, queued.image.name, ".jpg")
    try:
        draw_attention_map(file, pixels, maps)
    except OSError as error:
        said = f"The attention map {row_name(str(file))} cannot be written ({reason_of(error)})."
        if error.errno not in {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL}:
            raise RefinerError(said, hint="Free some space or choose another folder.") from None
        log(said)
