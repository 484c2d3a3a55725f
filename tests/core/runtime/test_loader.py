"""Decoding processes: shared memory that is small or missing, and processes that hang."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from refiner_cli.core.runtime import loader
from refiner_cli.data.crop import Pixels
from refiner_cli.errors import RefinerError

CPU = torch.device("cpu")
MIB = 2**20


class RowTransform:
    """Frames that say which view and row they are of."""

    side = None

    def frame(self, _image: Any, view: int, row: int) -> Pixels:
        return np.full((8, 8, 3), 10 * view + row, np.uint8)

    def finish(self, frames: torch.Tensor, places: Sequence[tuple[int, int]]) -> torch.Tensor:
        assert [10 * view + row for view, row in places] == frames[:, 0, 0, 0].tolist()
        return frames.movedim(-1, 1).float()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    return paths


@pytest.mark.parametrize("free", [0, 64 * MIB, None])
def test_batches_are_the_same_however_they_travel(
    monkeypatch: pytest.MonkeyPatch, files: list[Path], free: int | None
) -> None:
    monkeypatch.setattr(loader, "shared_memory", lambda: free)
    batches = list(loader.load_batches(files, RowTransform(), [[2, 0], [7, 1]], device=CPU, workers=1))
    assert [batch.rows.tolist() for batch in batches] == [[2, 0], [3, 1]]
    assert [batch.images[:, 0, 0, 0].tolist() for batch in batches] == [[2.0, 0.0], [13.0, 1.0]]


@pytest.mark.parametrize(
    ("free", "workers", "kind"),
    [
        (36 * MIB, 1, loader.PipedBatch),  # 9.2 MiB a batch, of which four may be under way
        (37 * MIB, 1, loader.ImageBatch),
        (64 * MIB, 3, loader.PipedBatch),  # as Docker gives it
        (0, 1, loader.PipedBatch),
        (165 * MIB, 8, loader.PipedBatch),
        (166 * MIB, 8, loader.ImageBatch),
        (None, 8, loader.ImageBatch),
    ],
)
def test_a_batch_goes_through_a_pipe_where_shared_memory_is_small(
    monkeypatch: pytest.MonkeyPatch, free: int | None, workers: int, kind: type
) -> None:
    monkeypatch.setattr(loader, "shared_memory", lambda: free)
    monkeypatch.setattr(loader, "get_worker_info", lambda: SimpleNamespace(num_workers=workers))
    frame = torch.zeros(224, 224, 3, dtype=torch.uint8)
    assert isinstance(loader.collate([(frame, row) for row in range(64)]), kind)


def test_without_semaphores_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "semaphores_work", lambda: False)
    count, reason = loader.pick_num_workers(2, CPU)
    assert count == 0
    assert "processes cannot share locks" in reason


def test_a_process_that_hangs_ends_the_loop_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(*_: object, **__: object) -> Iterator[object]:
        raise RuntimeError("DataLoader timed out after 600 seconds")
        yield

    monkeypatch.setattr(loader, "DataLoader", hangs)
    with pytest.raises(RefinerError, match="No batch of images arrived for 600 s"):
        next(loader.load_batches([], RowTransform(), [], device=CPU, workers=1))
