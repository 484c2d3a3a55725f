"""How fast prediction is, compared with a bare loop that only decodes and calls the backbone."""

from __future__ import annotations

import io
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from refiner_cli.core.runtime.device import autocast
from refiner_cli.data.crop import Pixels
from refiner_cli.data.workers import init_worker
from refiner_cli.inference.formats import JsonLines
from refiner_cli.inference.predict import predict_files
from refiner_cli.inference.recogniser import Recogniser
from refiner_cli.inference.scan import ImageFile


@dataclass(frozen=True)
class Throughput:
    """Images per second, the best of several rounds each."""

    predict: float  # rows, written
    bare: float  # image vectors of the backbone, and nothing else

    @property
    def ratio(self) -> float:
        """The share of the bare loop's speed that prediction reaches."""
        return self.predict / self.bare


def measure_throughput(
    recogniser: Recogniser, files: Sequence[Path], *, batch: int, workers: int, rounds: int = 3
) -> Throughput:
    """Run both over readable files in turn, so that other load on the machine affects both.

    The bare loop decodes the same way with as many processes, and calls the backbone on ready
    batches; it has no queries, no adapters, no candidates and no rows. The cost of starting
    processes is excluded from both: timing starts after the first batch of each loop.
    """
    recogniser.bank  # noqa: B018 - encoding the text is no part of either
    best = {"predict": 0.0, "bare": 0.0}
    for _ in range(rounds):
        for name, loop in (("predict", predicting), ("bare", bare)):
            ticks = loop(recogniser, files, batch, workers)
            next(ticks)
            began = time.perf_counter()
            images = sum(ticks)
            best[name] = max(best[name], images / (time.perf_counter() - began))
    return Throughput(**best)


def predicting(recogniser: Recogniser, files: Sequence[Path], batch: int, workers: int) -> Iterator[int]:
    """Yield how many images each batch of prediction has, once its rows are written."""
    images = [ImageFile(file, str(file)) for file in files]
    rows = predict_files(recogniser, images, top_k=5, batch=batch, workers=workers)
    writer = JsonLines(io.StringIO())
    while written := list(islice(rows, batch)):
        for row in written:
            writer.write(row)
        yield len(written)


def bare(recogniser: Recogniser, files: Sequence[Path], batch: int, workers: int) -> Iterator[int]:
    """Yield how many images each batch of the bare loop has, once the backbone has seen it."""
    model = recogniser.model
    stream = bare_pixels(recogniser, files, workers)
    while pixels := list(islice(stream, batch)):
        images = torch.from_numpy(np.stack(pixels)).to(model.device)
        with torch.no_grad(), autocast(model.device, recogniser.precision):
            vectors = model.backbone.clip.encode_image(recogniser.preprocess.normalise(images))
        vectors.cpu()
        yield len(pixels)


def bare_pixels(recogniser: Recogniser, files: Sequence[Path], workers: int) -> Iterator[Pixels]:
    crop = recogniser.preprocess.crop
    if workers == 0:
        yield from map(crop.load, files)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=init_worker) as pool:
        yield from pool.map(crop.load, files, chunksize=8)
