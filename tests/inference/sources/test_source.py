"""Names of images: each once, however many images have one name."""

from __future__ import annotations

from pathlib import Path

import pytest

from refiner_cli.inference.scan import ImageFile, name_digest
from refiner_cli.inference.sources import source
from refiner_cli.inference.sources.source import with_unique_names


def named(*names: str) -> list[ImageFile]:
    return [ImageFile(Path(name), name) for name in names]


def test_a_further_image_of_one_name_gets_a_number_or_is_passed_over() -> None:
    images = named("a", "a#2", "a", "b", "a", "a#2")
    found = [image.name for image in with_unique_names(images, number=True, taken=set())]
    assert found == ["a", "a#2", "a#3", "b", "a#4", "a#2#2"]
    assert [image.name for image in with_unique_names(images, number=False, taken=set())] == ["a", "a#2", "b"]
    taken = {name_digest("a")}
    assert [image.name for image in with_unique_names(named("a"), number=True, taken=taken)] == ["a#2"]


def test_a_shard_of_images_of_one_name_costs_no_more_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counted(name: str) -> bytes:
        asked.append(name)
        return name_digest(name)

    monkeypatch.setattr(source, "name_digest", counted)
    found = list(with_unique_names(named(*["image.png"] * 500), number=True, taken=set()))
    assert found[-1].name == "image.png#500"
    assert len(asked) <= 2 * len(found)
