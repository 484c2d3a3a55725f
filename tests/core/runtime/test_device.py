"""Devices by name; the precision is that of the device it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

from refiner_cli.core.runtime.device import pick_device, pick_precision


def test_the_precision_is_that_of_the_requested_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [torch.device("cuda", 0)]  # an old GPU; cuda:1 computes bf16

    @contextlib.contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        current.append(chosen)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: current[-1].index == 1)
    assert pick_precision("auto", torch.device("cuda", 0))[0] == torch.float16
    assert pick_precision("auto", torch.device("cuda", 1))[0] == torch.bfloat16
    assert len(current) == 1


@pytest.mark.parametrize(
    ("requested", "meant"), [("cpu:", "cpu"), ("cuda:", "cuda"), ("cuda:01", "cuda:1"), ("cuda:1", "cuda:1")]
)
def test_a_number_of_a_device_may_be_missing_or_written_in_another_way(
    requested: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device(requested)[0] == torch.device(meant)
