"""A benchmark whose images were encoded before: their vectors stand in for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from refiner_cli.core.models.base import Model
from refiner_cli.core.runtime.loader import ImageBatch
from refiner_cli.data.benchmark import Benchmark, Split
from refiner_cli.errors import UsageError


@dataclass(frozen=True)
class EncodedBenchmark(Benchmark):
    """Usable by models whose image side is the frozen backbone, which is what made the vectors."""

    vectors: dict[Split, Tensor] = field(default_factory=dict)  # N x D, unit vectors in the order of samples
    backbone: str = ""  # fingerprint of what made them; "": the caller knows

    def check_usable_by(self, model: Model, method: str) -> None:
        """Raise UsageError unless a method learns above the vectors, and on the backbone that made them."""
        if not model.frozen_image_side:
            raise UsageError(
                f"The method {method} learns inside the image tower, below the vectors that an index keeps.",
                hint="Use --method csp or coop, or train on the photos.",
            )
        if self.backbone and self.backbone != model.backbone.use_fingerprint():
            raise UsageError(f"The vectors in {self.root} were made with another backbone, or other weights.")

    def batches(
        self, split: Split, order: Sequence[Sequence[int]], device: torch.device
    ) -> Iterator[ImageBatch]:
        """The batches that ``order`` lists, vectors ``B x D`` in the place of images."""
        for rows in order:
            chosen = torch.tensor(list(rows), dtype=torch.int64)
            yield ImageBatch(self.vectors[split][chosen].to(device, torch.float32), chosen)


@torch.no_grad()
def encode_benchmark(
    model: Model, benchmark: Benchmark, batches: dict[Split, Iterator[ImageBatch]]
) -> EncodedBenchmark:
    """A benchmark with the composition vectors that a model gives its images.

    Args:
        batches: the preprocessed images of each split, in order.
    """
    vectors = {
        split: torch.cat([model.encode_images_tta(batch.images).composition.cpu() for batch in found])
        for split, found in batches.items()
    }
    return EncodedBenchmark(benchmark.name, benchmark.root, benchmark.pairs, benchmark.samples, vectors)
