"""Decoding and augmenting images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from refiner_cli.core.towers.architectures import find_architecture, preprocess_config
from refiner_cli.data.images import AUGMENTS, Affine, Augment, Preprocess, Published, decode, seed_of
from refiner_cli.errors import DatasetError

CONFIG = preprocess_config(find_architecture("tiny").config, {})


def view_of(augment: Augment, image: Image.Image, seed: int) -> torch.Tensor:
    """One augmented image, ``3 x H x W``."""
    return augment.finish(torch.from_numpy(augment.frame(image, seed))[None], [seed])[0]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA", "LA", "1", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (10, 6)).save(file)
    image = decode(file)
    assert (image.mode, image.size) == ("RGB", (10, 6))


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path: Path) -> None:
    Image.new("I;16", (4, 4), 32896).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").getpixel((0, 0)) == (128, 128, 128)


def test_a_rotated_photo_stands_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert decode(tmp_path / "a.jpg").size == (4, 8)


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "empty"), (b"hello", "not an image"), (None, "does not exist")]
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "bad.jpg"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"bad\.jpg.*{says}"):
        decode(file)


def test_a_cut_off_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(file)
    file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(DatasetError, match=r"cut\.png"):
        decode(file)


def test_preprocessing_gives_the_backbones_size() -> None:
    assert Preprocess(CONFIG)(Image.new("RGB", (300, 200))).shape == (3, 96, 96)


def test_an_affine_view_moves_the_picture_and_leaves_no_black_corner() -> None:
    config = {**CONFIG, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    grey = Image.new("RGB", (96, 96), (128, 128, 128))
    marked = grey.copy()
    marked.paste((255, 255, 255), (20, 40, 30, 50))  # left of the middle
    augment, places = AUGMENTS["affine"](config), []
    for seed in range(40):
        assert torch.allclose(view_of(augment, grey, seed), torch.full((3, 96, 96), 128 / 255), atol=1e-5)
        view = view_of(augment, marked, seed)[0]
        rows, columns = torch.nonzero(view > 0.75, as_tuple=True)
        assert 49 <= len(rows) <= 196  # 100 pixels, scaled by up to e^0.15 a side
        places.append((rows.float().mean().item(), columns.float().mean().item()))
    flipped = [x for _, x in places if x > 48]
    assert 10 <= len(flipped) <= 30
    assert max(y for y, _ in places) - min(y for y, _ in places) > 8


@pytest.mark.parametrize("kind", AUGMENTS)
def test_an_augmentation_is_a_function_of_its_seed_and_leaves_the_global_one_alone(kind: str) -> None:
    image = Image.effect_noise((120, 100), 80).convert("RGB")
    augment = AUGMENTS[kind](CONFIG)
    state = torch.random.get_rng_state()
    first, again = view_of(augment, image, seed_of(0, 1, 2)), view_of(augment, image, seed_of(0, 1, 2))
    other = view_of(augment, image, seed_of(0, 1, 3))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("kind", AUGMENTS)
def test_a_batch_is_finished_as_its_images_alone(kind: str) -> None:
    augment, seeds = AUGMENTS[kind](CONFIG), [seed_of(0, 1, row) for row in range(5)]
    images = [Image.effect_noise((120, 100), 80).convert("RGB") for _ in seeds]
    frames = [augment.frame(image, seed) for image, seed in zip(images, seeds, strict=True)]
    batch = augment.finish(torch.from_numpy(np.stack(frames)), seeds)
    for ours, image, seed in zip(batch, images, seeds, strict=True):
        assert torch.equal(ours, view_of(augment, image, seed))


def framed(size: int | tuple[int, int], mode: str, interpolation: str) -> dict[str, Any]:
    """A preprocessing configuration."""
    return {**CONFIG, "size": size, "resize_mode": mode, "interpolation": interpolation}


@pytest.mark.parametrize("size", [32, (48, 32), (32, 48)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_training_sees_the_frame_of_evaluation(
    size: int | tuple[int, int], mode: str, interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = framed(size, mode, interpolation)
    published = Published(config)
    image = Image.effect_noise((61, 40), 90).convert("RGB")
    plain = Preprocess(config)(image)
    assert view_of(published, image, 0).shape == view_of(Affine(config), image, 0).shape == plain.shape
    monkeypatch.setattr(published, "change", lambda frame: frame)
    assert torch.equal(view_of(published, image, 0), plain)


def test_the_published_augmentation_is_that_of_published_code() -> None:
    theirs = transforms.Compose(
        [
            transforms.Resize(32, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.RandomHorizontalFlip(),
            transforms.RandomPerspective(),
            transforms.RandomRotation(5),
            transforms.ToTensor(),
            transforms.Normalize(CONFIG["mean"], CONFIG["std"]),
        ]
    )
    ours = Published(framed(32, "shortest", "bicubic"))
    sizes = [(61, 40), (40, 61), (32, 32), (200, 33)]
    for seed in range(22):
        image = Image.effect_noise(sizes[seed % len(sizes)], 90).convert("RGB")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            assert torch.equal(view_of(ours, image, seed), theirs(image))


def test_an_affine_view_of_a_rectangle_is_turned_and_not_sheared() -> None:
    config = {**framed((48, 96), "squash", "bilinear"), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    square = Image.new("RGB", (96, 48), (0, 0, 0))
    square.paste((255, 255, 255), (38, 14, 58, 34))  # 20 by 20 pixels
    for seed in range(20):
        rows, columns = torch.nonzero(view_of(Affine(config), square, seed)[0] > 0.5, as_tuple=True)
        points = torch.stack([rows, columns]).double()
        spread = torch.linalg.eigvalsh(torch.cov(points))  # of a square all directions are alike
        assert spread[1] / spread[0] < 1.2
