"""The images of a split as vectors, so that many settings can be compared without encoding them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from refiner_cli.core.models.base import ImageVectors, Model
from refiner_cli.core.runtime.device import RuntimeOptions, autocast
from refiner_cli.data.benchmark import Benchmark, Split
from refiner_cli.evaluation.scoring import ProgressFn, image_batches

ByViews = dict[int, ImageVectors]  # by number of shifted views


@dataclass
class EncodedImages:
    """The vectors of a split's images for each number of shifted views.

    They are kept, unless the method scores against the patches of an image, which would take gigabytes:
    then every pass encodes again.
    """

    model: Model
    benchmark: Benchmark
    split: Split
    options: RuntimeOptions
    progress: ProgressFn
    counts: Sequence[int]  # numbers of views that are needed
    _kept: list[tuple[torch.Tensor, ByViews]] = field(init=False, default_factory=list)

    def __len__(self) -> int:
        return len(self.benchmark.samples[self.split])

    @torch.no_grad()
    def batches(self, counts: Sequence[int]) -> Iterator[tuple[torch.Tensor, ByViews]]:
        """The rows of each batch, ``B`` int64, and their vectors by number of views."""
        if self._kept:
            yield from self._kept
            return
        keep = self.model.scores_from_vectors
        done = 0
        kept: list[tuple[torch.Tensor, ByViews]] = []
        with autocast(self.model.device, self.options.precision):
            for batch in image_batches(self.model, self.benchmark, self.split, self.options):
                vectors = self.model.encode_views(batch.images, self.counts if keep else counts)
                if keep:
                    kept.append((batch.rows, vectors))
                yield batch.rows, vectors
                done += len(batch.rows)
                self.progress(done, len(self))
        self._kept = kept


def spread_mask(images: int, most: int) -> torch.Tensor:
    """Which of N images to take, ``N`` bool: all, or at most so many, evenly spread."""
    chosen = torch.zeros(images, dtype=torch.bool)
    places = np.linspace(0, images - 1, max(1, min(images, most))).round().astype(np.int64)
    chosen[torch.from_numpy(places)] = True
    return chosen
