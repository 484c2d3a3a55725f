"""Decoding without PyTorch: the same pixels as open_clip, whatever the file."""

from __future__ import annotations

import io
import os
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from refiner_cli.data.crop import Crop
from refiner_cli.data.decode import read
from refiner_cli.data.image_file import UnreadableError
from refiner_cli.data.images import Preprocess


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.effect_noise((width, height), 90).convert(mode)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [32, (48, 32)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preprocessing_is_open_clips_to_the_last_bit(
    mode: str, size: int | tuple[int, int], interpolation: str
) -> None:
    config: dict[str, Any] = {
        "size": size, "mode": "RGB", "mean": (0.48, 0.45, 0.40), "std": (0.26, 0.25, 0.27),
        "interpolation": interpolation, "resize_mode": mode, "fill_color": 0,
    }  # fmt: skip
    theirs: Any = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**config), is_train=False
    )
    ours = Preprocess(config)
    for width, height in ((32, 32), (61, 40), (40, 61), (20, 90), (90, 31), (33, 32), (7, 9)):
        image = noise(width, height)
        assert torch.equal(ours(image), theirs(image)), (width, height)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("jpg", "RGB"), ("jpg", "L"), ("jpg", "CMYK"), ("png", "P"), ("png", "RGBA"), ("png", "I;16"),
     ("webp", "RGBA"), ("gif", "P"), ("bmp", "RGB"), ("tif", "RGB"), ("tif", "F"), ("png", "1")],
)  # fmt: skip
def test_every_kind_of_file_gives_pixels(tmp_path: Path, kind: str, mode: str) -> None:
    file = tmp_path / f"a.{kind}"
    image = Image.new("I;16", (40, 30), 500) if mode == "I;16" else noise(40, 30, mode)
    image.save(file)
    assert Crop(16, 16).load(file).shape == (16, 16, 3)


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_a_large_jpeg_is_decoded_smaller_but_large_enough(tmp_path: Path) -> None:
    noise(1600, 1200).save(tmp_path / "a.jpg")
    assert read(tmp_path / "a.jpg").size == (1600, 1200)
    assert read(tmp_path / "a.jpg", 100).size == (400, 300)
    assert read(tmp_path / "a.jpg", 200).size == (800, 600)


def test_an_absurdly_large_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    header = (100_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    chunks = [(b"IHDR", header), (b"IDAT", b"nothing")]
    content = b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in chunks
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with pytest.raises(UnreadableError, match="million pixels"):
        read(tmp_path / "a.png")


def test_a_pipe_and_a_folder_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="folder"):
        read(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "a.jpg")
        with pytest.raises(UnreadableError, match="not a regular file"):
            read(tmp_path / "a.jpg")


def test_an_extremely_long_image_fills_no_memory(tmp_path: Path) -> None:
    Image.new("RGB", (60_000, 1), "red").save(tmp_path / "a.png")
    assert np.array_equal(Crop(8, 8).load(tmp_path / "a.png")[4, 4], (255, 0, 0))


def mutated(content: bytes, dice: random.Random) -> bytes:
    """Some bytes changed, a piece cut out, or the end missing."""
    value = bytearray(content)
    for _ in range(dice.choice((1, 4, 40))):
        value[dice.randrange(len(value))] = dice.randrange(256)
    if dice.random() < 0.4:
        start = dice.randrange(len(value))
        del value[start : start + dice.randrange(1, 200)]
    return bytes(value[: dice.randrange(len(value))] if dice.random() < 0.2 else value)


def samples() -> list[tuple[str, bytes]]:
    """A small file of every kind, by its ending."""
    found = []
    for kind, mode in (
        ("jpg", "RGB"), ("jpg", "CMYK"), ("png", "RGBA"), ("png", "P"), ("webp", "RGB"), ("gif", "P"),
        ("bmp", "RGB"), ("tif", "RGB"), ("avif", "RGB"),
    ):  # fmt: skip
        buffer = io.BytesIO()
        noise(64, 48, mode).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper()))
        found.append((kind, buffer.getvalue()))
    return found


def test_a_damaged_file_gives_pixels_or_a_reason(tmp_path: Path) -> None:
    dice, crop = random.Random(5), Crop(16, 16)
    reasons = []
    for kind, content in samples():
        for _ in range(12):
            file = tmp_path / f"a.{kind}"
            file.write_bytes(mutated(content, dice))
            try:
                assert crop.load(file).shape == (16, 16, 3)
            except UnreadableError as reason:
                reasons.append(str(reason))
    assert reasons
    assert all(reasons)
