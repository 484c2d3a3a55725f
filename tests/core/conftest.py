"""Fixtures of the core's tests."""

from __future__ import annotations

import pytest
import torch

from refiner_cli.core.clip import Backbone, load_backbone


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    """The built-in backbone, one a module."""
    return load_backbone("tiny", "built-in")


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Two pictures of noise for it."""
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
