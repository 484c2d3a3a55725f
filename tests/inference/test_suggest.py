"""What to label next, against brute force."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from refiner_cli.core.model_io.zero_shot import zero_shot_model
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import UsageError
from refiner_cli.inference.convert.answers import Answers, noted_places
from refiner_cli.inference.index import Index, IndexInfo, IndexRow
from refiner_cli.inference.recogniser import Recogniser
from refiner_cli.inference.suggest import SAME, choose_diverse, suggest_images, write_suggestions
from tests.conftest import parse_rows

PAIRS = [("burnt", "apple"), ("wet", "apple"), ("burnt", "pear"), ("wet", "pear")]
INF = float("inf")


def brute_force(
    vectors: torch.Tensor, weights: list[float], count: int, centres: list[torch.Tensor]
) -> list[int]:
    taken: list[int] = []

    def distance(i: int) -> float:
        near = [1 - float(vectors[i] @ c) for c in [*centres, *(vectors[j] for j in taken)]]
        return min(near, default=2.0)

    first = [i for i, weight in enumerate(weights) if weight == INF]
    for _ in range(len(weights)):
        free = [i for i in range(len(weights)) if i not in taken and distance(i) > SAME]
        before = [i for i in first if i in free]
        if not free or len(taken) == count:
            break
        taken.append(before[0] if before else max(free, key=lambda i: weights[i] * distance(i)))
    return taken


@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_that_of_brute_force(seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    vectors = F.normalize(torch.randn(30, 5, generator=chance), dim=-1)
    vectors[7], vectors[9], vectors[20] = vectors[3], vectors[3], vectors[1]  # copies
    weights = torch.rand(30, generator=chance)
    weights[:seed] = INF
    centres = F.normalize(torch.randn(4, 5, generator=chance), dim=-1)[: 2 * (seed % 2)]
    chosen = choose_diverse(vectors, weights, 12, iter([centres] if len(centres) else []))
    assert chosen == brute_force(vectors, weights.tolist(), 12, list(centres))
    assert len(choose_diverse(vectors, weights, 99, iter([]))) == 27  # each copy once


@pytest.fixture
def recogniser() -> Recogniser:
    model, _ = zero_shot_model("tiny", LabelSpace.from_pairs(PAIRS, PAIRS[:3]))
    return Recogniser(model)


@pytest.fixture
def index(recogniser: Recogniser, tmp_path: Path) -> Index:
    """Images near the texts of the pairs, some between two of them, copies, and a damaged one."""
    texts = recogniser.bank.pairs
    mixed = [
        texts[0],
        texts[3],
        texts[3] + 0.2 * texts[0],
        texts[1] + texts[2],
        texts[0] + texts[3],
        texts[1],
    ]
    vectors = F.normalize(torch.stack([*mixed, mixed[3], torch.zeros_like(texts[0])]), dim=-1)
    info = {"model": "m", "preprocessing": "p"}
    empty = IndexInfo.empty(info, "clip", ["composition"], vectors.shape[1], [str(tmp_path)], 3)
    made = Index.create(tmp_path / "index", empty)
    for first in range(0, len(vectors), 3):
        rows = [IndexRow(f"{i}.jpg", 1, "now", "ok" if i < 7 else "error", None if i < 7 else "x")
                for i in range(first, min(first + 3, len(vectors)))]  # fmt: skip
        made.replace([], rows, {"composition": vectors[first : first + 3]})
    return Index.open(tmp_path / "index")


def test_unseen_pairs_come_first_and_copies_once(recogniser: Recogniser, index: Index) -> None:
    found = suggest_images(index, recogniser, 6)
    assert (found[0].row.path, found[0].reason) == ("1.jpg", "unseen pair")
    assert "'wet pear'" in found[0].note
    paths = [one.row.path for one in found]
    assert len(set(paths)) == len(paths) == 6
    assert len({"3.jpg", "6.jpg"} & set(paths)) == 1  # the same image twice
    assert "7.jpg" not in paths
    assert [one.rank for one in found] == [1, 2, 3, 4, 5, 6]
    assert {one.reason for one in found[1:]} == {"uncertain"}


def test_what_is_labelled_is_not_suggested_nor_its_copies(recogniser: Recogniser, index: Index) -> None:
    found = suggest_images(index, recogniser, 9, is_labelled=lambda name: name in {"1.jpg", "3.jpg"})
    assert {one.row.path for one in found}.isdisjoint({"1.jpg", "3.jpg", "6.jpg", "7.jpg"})
    with pytest.raises(UsageError, match="no image that is left to label"):
        suggest_images(index, recogniser, 9, is_labelled=lambda _: True)


def test_suggestions_are_rows_that_can_be_converted(
    recogniser: Recogniser, index: Index, tmp_path: Path
) -> None:
    file = tmp_path / "next.jsonl"
    rows = [one.to_json() for one in suggest_images(index, recogniser, 3)]
    write_suggestions(file, rows, index)
    assert parse_rows(file.read_text("utf-8")) == rows
    answers = list(Answers(file, noted_places(file)))
    assert [answer.file for answer in answers] == [tmp_path / row["path"] for row in rows]
