"""Batches that fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from refiner_cli.core.runtime.memory import OomRetry
from refiner_cli.errors import RefinerError


def short_of(limit: int, sizes: list[int]) -> object:
    def compute(images: Tensor) -> list[float]:
        sizes.append(len(images))
        if len(images) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images.tolist()

    return compute


def test_a_batch_that_does_not_fit_is_halved_and_stays_so() -> None:
    told: list[str] = []
    sizes: list[int] = []
    pieces = OomRetry(told.append)
    for _ in range(2):
        assert pieces.run(short_of(3, sizes), torch.arange(10)) == list(range(10))  # type: ignore[arg-type]
    assert sizes == [10, 5, 2, 2, 2, 2, 2] + [2] * 5
    assert len(told) == 2


def test_a_single_image_that_does_not_fit_ends_the_run_and_other_errors_pass() -> None:
    with pytest.raises(RefinerError, match="single image"):
        OomRetry(lambda _: None).run(short_of(0, []), torch.arange(4))  # type: ignore[arg-type]

    def broken(images: Tensor) -> list[float]:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        OomRetry(lambda _: None).run(broken, torch.arange(4))
