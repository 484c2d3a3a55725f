"""Attention maps lie over the image as the patches do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from refiner_cli.inference.attention_maps import MAP_SIDE, overlay


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 4), (4, 3), (2, 7)])
def test_the_brightest_place_is_the_patch_attended_to(rows: int, columns: int) -> None:
    image = Image.new("RGB", (16 * columns, 16 * rows), (120, 120, 120))
    for patch in range(rows * columns):
        attention = torch.zeros(rows * columns)
        attention[patch] = 1
        light = np.asarray(overlay(image, attention).convert("L")).astype(float)
        row, column = np.unravel_index(light.argmax(), light.shape)
        assert (row * rows // MAP_SIDE, column * columns // MAP_SIDE) == divmod(patch, columns)
