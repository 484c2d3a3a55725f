"""Files in, rows out: one row an image, whatever its file is like, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from refiner_cli.core.runtime.memory import OomRetry
from refiner_cli.inference.attention_maps import draw_attention_map
from refiner_cli.inference.decoding import Batch, Outcome, decode_batches, make_batches
from refiner_cli.inference.formats import Row
from refiner_cli.inference.recogniser import Prediction, Recogniser
from refiner_cli.inference.scan import ImageFile


def silent(text: str) -> None:
    """Nobody listens."""


def predict_files(
    recogniser: Recogniser, found: Iterable[ImageFile], *, top_k: int, batch: int, workers: int
) -> Iterator[Row]:
    """Yield a row for every file, in order; one that cannot be read gives a row that says why."""
    some = make_batches(found, batch, lambda _: True)
    return predict_batches(recogniser, some, top_k=top_k, workers=workers)


def predict_batches(
    recogniser: Recogniser,
    some: Iterable[Batch],
    *,
    top_k: int,
    workers: int,
    heatmaps: Path | None = None,
    log: Callable[[str], None] = silent,
) -> Iterator[Row]:
    """Yield a row for every wanted file of the groups, in order.

    Args:
        workers: processes that decode; 0: this one does.
        heatmaps: where a picture of every image is drawn, before its row is yielded.
        log: gets a line when memory runs out.
    """
    crop = recogniser.preprocess.crop
    oom_retry = OomRetry(log)
    for group, outcomes in decode_batches(some, crop, workers):
        made = predict_batch(recogniser, group, outcomes, oom_retry, top_k=top_k, heatmaps=heatmaps)
        for (place, found), outcome in zip(group.wanted, outcomes, strict=True):
            if isinstance(outcome, str):
                yield Row(found.name, None, f"The image {found.file} cannot be read ({outcome}).")
            else:
                yield Row(found.name, made[place])


def predict_batch(
    recogniser: Recogniser,
    group: Batch,
    outcomes: list[Outcome],
    oom_retry: OomRetry,
    *,
    top_k: int,
    heatmaps: Path | None,
) -> list[Prediction]:
    """The predictions of a whole group by place; those of files that gave no pixels mean nothing."""
    crop = recogniser.preprocess.crop
    pixels = np.zeros((group.size, crop.height, crop.width, 3), np.uint8)  # B x H x W x 3
    shown: list[tuple[int, ImageFile]] = []
    for (place, found), outcome in zip(group.wanted, outcomes, strict=True):
        if not isinstance(outcome, str):
            pixels[place] = outcome
            shown.append((place, found))
    if not shown:
        return []
    images = recogniser.preprocess.normalise(torch.from_numpy(pixels).to(recogniser.model.device))
    made = oom_retry.run(lambda some: recogniser.predict_tensor(some, top_k=top_k), images)
    if heatmaps:
        looks = oom_retry.run(lambda some: list(recogniser.query_attention(some).cpu()), images)
        for place, found in shown:
            draw_attention_map(heatmaps / f"{found.name}.jpg", pixels[place], looks[place])
    return made
