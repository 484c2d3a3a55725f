"""The token cache: training from it equals training from images; damage and interruptions are mended."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from refiner_cli.core.models.refiner import Refiner, RefinerConfig
from refiner_cli.core.runtime.loader import TrainTransform, load_batches
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.data.benchmark import Benchmark, load_benchmark
from refiner_cli.data.images import Published
from refiner_cli.errors import ConfigError, RefinerError
from refiner_cli.training import token_cache
from refiner_cli.training.token_cache import TokenCache
from refiner_cli.training.trainer import Trainer
from tests.training.test_trainer import begin, losses

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def benchmark(small_demo: Path) -> Benchmark:
    return load_benchmark(small_demo)


@pytest.fixture(scope="module")
def model(benchmark: Benchmark) -> Refiner:
    config = RefinerConfig(adapter_blocks=1)
    return Refiner.build(load_backbone("tiny", "none"), config, benchmark.vocabulary)


@pytest.fixture
def cache(
    tmp_path: Path, benchmark: Benchmark, model: Refiner, monkeypatch: pytest.MonkeyPatch
) -> TokenCache:
    monkeypatch.setattr(token_cache, "IMAGES_PER_FILE", 4)
    files = list(benchmark.paths("train"))[:10]
    return TokenCache(tmp_path, model, files, views=2, seed=5, key="demo", precision=torch.float32)


def test_tokens_are_those_of_the_augmented_view(cache: TokenCache) -> None:
    said: list[str] = []
    cache.fill(said.append)
    assert "2 views of 10 images, 20 missing" in said[0]
    assert "GiB free" in said[0]
    transform = TrainTransform(Published(cache.model.backbone.spec.preprocess), cache.seed)
    order = [[9, 0, 5], [3]]
    second_view = [[10 + row for row in rows] for rows in order]
    seen = load_batches(cache.files, transform, second_view, device=CPU, workers=0)
    for ours, theirs in zip(cache.batches(order, epoch=3), seen, strict=True):
        assert ours.rows.tolist() == theirs.rows.tolist()
        assert torch.allclose(ours.images, cache.model.encode_frozen_blocks(theirs.images), atol=1e-5)


def test_damaged_and_missing_files_alone_are_made_again(cache: TokenCache) -> None:
    cache.fill(lambda line: None)
    first, second, *others = sorted(cache.place.iterdir())
    times = {file: file.stat().st_mtime_ns for file in others}
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    second.unlink()
    (cache.place / "001-00000000.part").write_bytes(b"half")  # what a killed process leaves
    said: list[str] = []
    cache.fill(said.append)
    assert "8 missing" in said[0]
    assert first.read_bytes() == content
    assert second.exists()
    assert {file: file.stat().st_mtime_ns for file in others} == times


def test_another_process_takes_over_what_was_filled_without_reading_it(
    cache: TokenCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.fill(lambda line: None)
    other, said = dataclasses.replace(cache), list[str]()
    with monkeypatch.context() as patch:
        patch.delattr(token_cache, "sha256")
        other.join(said.append)
    assert (other.found, said) == (cache.found, [])
    sorted(cache.place.iterdir())[-1].unlink()
    other.join(said.append)
    assert other.found == cache.found
    assert "2 missing" in said[0]


def test_a_disk_without_room_is_an_error_before_anything_is_made(
    cache: TokenCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = shutil.disk_usage(cache.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: used._replace(free=1000))
    with pytest.raises(RefinerError, match="number of views"):
        cache.fill(lambda line: None)
    assert not list(cache.place.iterdir())


def test_training_from_the_cache_gives_the_same_losses(tmp_path: Path, benchmark: Benchmark) -> None:
    def train(name: str, **more: object) -> list[float]:
        training: Trainer = begin(tmp_path / name, benchmark, **{"train.epochs": 1, **more})
        list(training.fit())
        return losses(training.run)

    plain, cached = train("plain"), train("cached", **{"train.cached_views": 1})
    assert cached == pytest.approx(plain, rel=1e-5)
    assert list((tmp_path / "cached" / "tokens").rglob("*.safetensors"))


def test_a_baseline_has_no_cache(tmp_path: Path, benchmark: Benchmark) -> None:
    with pytest.raises(ConfigError, match="method refiner"):
        begin(tmp_path / "run", benchmark, **{"train.cached_views": 1, "method": "csp"})
