"""Batches that fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from refiner_cli.core.runtime.memory import OomRetry, is_out_of_memory
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


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_recognised_on_every_device(error: Exception) -> None:
    assert is_out_of_memory(error)

    def compute(part: torch.Tensor) -> list[int]:
        if len(part) > 2:
            raise error
        return part.tolist()

    assert OomRetry(lambda _: None).run(compute, torch.arange(5)) == [0, 1, 2, 3, 4]
