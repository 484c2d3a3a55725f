"""Decoding ahead of the model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refiner_cli.data.crop import Crop
from refiner_cli.inference.decode_pool import DecodeResult
from refiner_cli.inference.decoding import decode_batches
from refiner_cli.inference.scan import ImageFile

CROP = Crop(8, 8)


class Deadly(Crop):
    """A crop whose decoder takes the process down at some files."""

    def load(self, file: Path) -> DecodeResult:  # type: ignore[override]
        if "deadly" in file.name:
            os._exit(1)
        return super().load(file)


def photos(folder: Path, count: int) -> list[ImageFile]:
    found = []
    for i in range(count):
        file = folder / f"{i:03}.png"
        if i % 7 == 3:
            file.write_bytes(b"nothing")
        else:
            Image.new("RGB", (10, 10), (i, i, i)).save(file)
        found.append(ImageFile(file, file.name))
    return found


def test_groups_keep_size_and_places_whatever_is_done(tmp_path: Path) -> None:
    found = [ImageFile(tmp_path / str(i), str(i)) for i in range(11)]
    decoded = decode_batches(found, 4, CROP, 0, wanted=lambda one, _: one.name in {"2", "9", "10"})
    some = [group for group, _ in decoded]
    assert [(g.number, g.size, [one.place for one in g.wanted]) for g in some] == [
        (0, 4, [2]),
        (2, 3, [1, 2]),
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_outcomes_come_in_order_with_reasons_in_their_places(tmp_path: Path, workers: int) -> None:
    found = photos(tmp_path, 50)
    seen = 0
    for group, outcomes in decode_batches(found, 12, CROP, workers):
        for queued, outcome in zip(group.wanted, outcomes, strict=True):
            number = int(queued.image.file.stem)
            assert number == seen
            if number % 7 == 3:
                assert outcome == "it is not an image in a supported format"
            else:
                assert np.array_equal(outcome, np.full((8, 8, 3), number))
            seen += 1
    assert seen == 50


def test_files_are_found_only_as_far_ahead_as_the_processes_need(tmp_path: Path) -> None:
    one, asked = photos(tmp_path, 1)[0], 0

    def endless() -> object:
        nonlocal asked
        while True:
            asked += 1
            yield one

    stream = decode_batches(endless(), 8, CROP, 1)  # type: ignore[arg-type]
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert asked <= 64


def test_a_file_that_kills_its_decoder_costs_no_other_image(tmp_path: Path) -> None:
    found = photos(tmp_path, 3)
    deadly = tmp_path / "deadly.png"
    deadly.touch()
    found.insert(1, ImageFile(deadly, "deadly"))
    ((_, outcomes),) = decode_batches(found, 8, Deadly(8, 8), 1)
    assert outcomes[1] == "the process that decoded it died (exit code 1)"
    assert not any(isinstance(outcome, str) for outcome in (outcomes[0], outcomes[2], outcomes[3]))
