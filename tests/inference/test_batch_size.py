"""The batch size of a prediction follows the free memory."""

from __future__ import annotations

from pathlib import Path

import pytest

import refiner_cli
from refiner_cli.inference import batch_size
from refiner_cli.inference.batch_size import pick_batch_size


def test_the_batch_is_what_half_of_the_free_memory_holds(
    small_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recogniser = refiner_cli.load(small_export, device="cpu")
    assert pick_batch_size(7, recogniser)[0] == 7
    chosen = []
    for free in (2**20, 2**25, 2**40):
        monkeypatch.setattr(batch_size, "free_memory", lambda _, free=free: free)
        chosen.append(pick_batch_size(0, recogniser)[0])
    assert chosen[0] == 1 < chosen[1] <= chosen[2] == 32
