"""Batches that fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import refiner_cli
from refiner_cli.core.runtime import memory
from refiner_cli.core.runtime.memory import Pieces, pick_batch
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
    pieces = Pieces(told.append)
    for _ in range(2):
        assert pieces.run(short_of(3, sizes), torch.arange(10)) == list(range(10))  # type: ignore[arg-type]
    assert sizes == [10, 5, 2, 2, 2, 2, 2] + [2] * 5
    assert len(told) == 2


def test_a_single_image_that_does_not_fit_ends_the_run_and_other_errors_pass() -> None:
    with pytest.raises(RefinerError, match="single image"):
        Pieces(lambda _: None).run(short_of(0, []), torch.arange(4))  # type: ignore[arg-type]

    def broken(images: Tensor) -> list[float]:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        Pieces(lambda _: None).run(broken, torch.arange(4))


def test_the_batch_is_what_half_of_the_free_memory_holds(
    small_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recogniser = refiner_cli.load(small_export, device="cpu")
    assert pick_batch(7, recogniser)[0] == 7
    chosen = []
    for free in (2**20, 2**25, 2**40):
        monkeypatch.setattr(memory, "free_memory", lambda _, free=free: free)
        chosen.append(pick_batch(0, recogniser)[0])
    assert chosen[0] == 1 < chosen[1] <= chosen[2] == 32
