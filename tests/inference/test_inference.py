"""From files to rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import refiner_cli
from refiner_cli.core.models.calibration import Calibration, tempered
from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.errors import DatasetError, RefinerError, UsageError
from refiner_cli.inference.predict import predict_files
from refiner_cli.inference.recogniser import Prediction, Recogniser
from refiner_cli.inference.scan import ImageFile
from refiner_cli.inference.vocabulary import choose_space


@pytest.fixture(scope="module")
def recogniser(small_export: Path) -> Recogniser:
    return refiner_cli.load(small_export)


@pytest.fixture(scope="module")
def some_images(small_demo: Path) -> list[Path]:
    return list(load_benchmark(small_demo).paths("test"))[:5]


def test_paths_and_opened_images_give_the_same_predictions(
    recogniser: Recogniser, some_images: list[Path]
) -> None:
    by_path = list(recogniser.predict(some_images, top_k=3))
    by_image = list(recogniser.predict([Image.open(path) for path in some_images], top_k=3))
    assert by_path == by_image
    assert all(len(made.compositions) == 3 for made in by_path)


def test_a_prediction_ranks_all_candidates_fairly(recogniser: Recogniser, some_images: list[Path]) -> None:
    everything = len(recogniser.space.pairs)
    made = next(recogniser.predict(some_images[:1], top_k=everything))
    scores = [one.score for one in made.compositions]
    assert scores == sorted(scores, reverse=True)
    assert sum(one.probability for one in made.compositions) == pytest.approx(1)
    assert sum(part.probability for part in made.states) == pytest.approx(1)
    states = recogniser.space.states
    sums = torch.tensor(
        [sum(one.probability for one in made.compositions if one.state == state) for state in states]
    )
    temperature = recogniser.model.calibration.closed.temperatures.state
    best = made.states[0]
    assert best.probability == pytest.approx(float(tempered(sums[None], temperature).max()), abs=1e-6)
    assert best.name == states[int(sums.argmax())]
    seen = {(one.state, one.object) for one in made.compositions if one.seen}
    assert seen == recogniser.space.seen_pairs & set(recogniser.space.pairs)


def test_the_bias_is_the_checkpoints(recogniser: Recogniser, some_images: list[Path]) -> None:
    made = next(recogniser.predict(some_images[:1], top_k=len(recogniser.space.pairs)))
    pixels = recogniser.preprocess(Image.open(some_images[0]).convert("RGB"))[None]
    with torch.no_grad():
        scores = recogniser.model.corrected_scores(
            recogniser.model.encode_images_tta(pixels), recogniser.bank
        )
        total = recogniser.model.combine(scores, recogniser.space)[0]
    assert recogniser.model.calibration.bias != 0
    for one in made.compositions:
        plain = total[recogniser.space.pair_index[one.state, one.object]].item()
        assert one.score == pytest.approx(
            plain + (0 if one.seen else recogniser.model.calibration.bias), abs=1e-4
        )


def test_each_world_has_its_own_bias(small_export: Path, some_images: list[Path]) -> None:
    model = refiner_cli.load(small_export).model
    wide = choose_space(model.space, "open", None, None, None)
    for space, key in ((model.space, "bias"), (wide, "open_bias")):
        scores = []
        for added in (0.0, 3.0):
            model.calibration = dataclasses.replace(
                model.calibration, **{"bias": 1.0, "open_bias": -1.0, key: added}
            )
            made = next(Recogniser(model, space).predict(some_images[:1], top_k=len(space.pairs)))
            scores.append({(one.state, one.object): one.score for one in made.compositions})
        changed = {pair: scores[1][pair] - scores[0][pair] for pair in space.pairs}
        assert changed == {
            pair: pytest.approx(0.0 if seen else 3.0, abs=1e-4)
            for pair, seen in zip(space.pairs, space.seen.tolist(), strict=True)
        }


def test_an_unreadable_file_is_named(recogniser: Recogniser, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"bad\.jpg"):
        next(recogniser.predict([tmp_path / "bad.jpg"]))


def test_an_own_vocabulary_keeps_what_is_seen(recogniser: Recogniser, tmp_path: Path) -> None:
    (tmp_path / "states.txt").write_text("burnt\nfluffy\n\n")
    (tmp_path / "objects.txt").write_text("apple\ndragon\n")
    (tmp_path / "pairs.txt").write_text("burnt apple\nfluffy dragon\n")
    made_for = recogniser.space
    space = choose_space(made_for, "closed", tmp_path / "states.txt", tmp_path / "objects.txt", None)
    assert space.pairs == (("burnt", "apple"), ("burnt", "dragon"), ("fluffy", "apple"), ("fluffy", "dragon"))
    assert space.seen.tolist() == [True, False, False, False]
    assert choose_space(made_for, "closed", None, None, tmp_path / "pairs.txt").pairs == (
        ("burnt", "apple"), ("fluffy", "dragon"))  # fmt: skip
    assert len(choose_space(made_for, "open", None, None, None).pairs) == 12 * 16
    with pytest.raises(UsageError):
        choose_space(made_for, "closed", tmp_path / "states.txt", None, tmp_path / "pairs.txt")


def test_images_are_taken_and_decoded_one_batch_at_a_time(
    recogniser: Recogniser, some_images: list[Path]
) -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield some_images[taken % len(some_images)]

    stream = recogniser.predict(endless(), batch=4)
    assert taken == 0
    for made in range(1, 10):
        next(stream)
        assert taken == 4 * math.ceil(made / 4)


def test_running_out_of_memory_on_any_device_halves_the_batch(
    recogniser: Recogniser, some_images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a CPU under Linux says it."""
    expected = list(recogniser.predict(some_images))
    sizes: list[int] = []
    compute = recogniser.predict_tensor

    def small_memory(images: Tensor, *, top_k: int) -> list[Prediction]:
        sizes.append(len(images))
        if len(images) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return compute(images, top_k=top_k)

    monkeypatch.setattr(recogniser, "predict_tensor", small_memory)
    made = list(recogniser.predict(some_images))
    assert max(sizes[2:]) == 2
    said: list[str] = []
    files = [ImageFile(file, file.name) for file in some_images]
    rows = list(predict_files(recogniser, files, top_k=5, batch=len(files), workers=0, log=said.append))
    assert any("out of memory" in text for text in said)
    for found in (made, [row.prediction for row in rows]):
        for one, other in zip(found, expected, strict=True):
            assert one
            assert one.compositions[0].score == pytest.approx(other.compositions[0].score, abs=1e-3)


def test_texts_that_do_not_fit_are_named(recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    small = Recogniser(recogniser.model, recogniser.space)
    monkeypatch.setattr(recogniser.model, "encode_pairs", no_memory)
    with pytest.raises(RefinerError, match="texts of"):
        small.bank  # noqa: B018 - computing it is the test


@pytest.mark.parametrize("world", ["closed", "open"])
def test_pairs_in_blocks_give_the_predictions_of_all_pairs_at_once(
    recogniser: Recogniser, some_images: list[Path], monkeypatch: pytest.MonkeyPatch, world: str
) -> None:
    model = recogniser.model
    monkeypatch.setattr(model, "calibration", Calibration(0.7, 0.4, 1.5))
    space = model.space if world == "closed" else model.space.open_world()
    whole = list(Recogniser(model, space).predict(some_images, top_k=7))
    monkeypatch.setattr("refiner_cli.inference.recogniser.BLOCK_PAIRS", 13)
    blocks = list(Recogniser(model, space).predict(some_images, top_k=7))
    for one, other in zip(blocks, whole, strict=True):
        for kind in ("compositions", "states", "objects"):
            for guess, expected in zip(getattr(one, kind), getattr(other, kind), strict=True):
                assert guess.probability == pytest.approx(expected.probability, rel=1e-4)
        assert one.compositions[0].score == pytest.approx(other.compositions[0].score, abs=1e-3)
