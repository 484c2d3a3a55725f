"""Queries, and search against brute force."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from refiner_cli.core.models.hubness import SOFTNESS
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import UsageError
from refiner_cli.inference.index import Index, IndexInfo, IndexRow
from refiner_cli.inference.query import QueryVectors, Term, parse_query, unknown_names
from refiner_cli.inference.search import search_index

PAIRS = [("rusty", "bike"), ("half_eaten", "apple"), ("Faux.Leather", "Boots.Ankle"), ("green", "apple")]
SPACE = LabelSpace.from_pairs(PAIRS, PAIRS)


@pytest.mark.parametrize(
    ("words", "terms"),
    [
        (["rusty", "bike"], [Term("pair", "rusty", "bike")]),
        (["rusty bike"], [Term("pair", "rusty", "bike")]),
        (["'rusty bike'"], [Term("pair", "rusty", "bike")]),
        (["half", "eaten", "apple"], [Term("pair", "half_eaten", "apple")]),
        (["faux leather ankle boots"], [Term("pair", "Faux.Leather", "ankle boots")]),
        (["faux", "leather", "boots", "ankle"], [Term("pair", "Faux.Leather", "Boots.Ankle")]),
        (["state:rusty", "object:bike"], [Term("state", "rusty"), Term("object", "", "bike")]),
        (["state:Half-eaten"], [Term("state", "Half-eaten")]),
        (["state:'half eaten'"], [Term("state", "half_eaten")]),
        (["apple"], [Term("object", "", "apple")]),
        (["green"], [Term("state", "green")]),
        (["sunset"], [Term("text", "sunset")]),
        (["purple", "apple"], [Term("pair", "purple", "apple")]),
        (["very", "old", "bike"], [Term("pair", "very old", "bike")]),
        (["green + apple"], [Term("state", "green"), Term("object", "", "apple")]),
        (["apple", "-green"], [Term("object", "", "apple"), Term("state", "green", sign=-1)]),
        (["apple - state:green"], [Term("object", "", "apple"), Term("state", "green", sign=-1)]),
        (["+apple", "-'rusty bike'"], [Term("object", "", "apple"), Term("pair", "rusty", "bike", -1)]),
    ],
)
def test_a_query_is_read_as_its_terms(words: list[str], terms: list[Term]) -> None:
    assert parse_query(words, SPACE) == terms


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "The query is empty"),
        (["+", "-"], "The query is empty"),
        (["-green", "-object:apple"], "The query only excludes"),
        (["state:"], "has no name after the colon"),
        (["'rusty bike"], "an unmatched quote"),
        (["?!"], "holds no word"),
        (["apple", "+", "..."], "holds no word"),
    ],
)
def test_a_query_that_asks_for_nothing_is_wrong_usage(words: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_query(words, SPACE)


def test_names_that_training_did_not_know_are_told() -> None:
    terms = parse_query(["purple", "apple", "+", "state:green", "+", "sunset", "-", "half eaten pear"], SPACE)
    assert unknown_names(terms, SPACE) == ["purple", "sunset", "pear"]


def make_index(folder: Path, vectors: torch.Tensor, part_size: int, broken: set[int]) -> Index:
    info = IndexInfo.empty({"model": "m"}, "clip", ["composition"], vectors.shape[1], ["p"], part_size)
    index = Index.create(folder, info)
    for first in range(0, len(vectors), part_size):
        rows = [
            IndexRow(f"{i}.jpg", 1, "now", "error" if i in broken else "ok", "bad" if i in broken else None)
            for i in range(first, min(first + part_size, len(vectors)))
        ]
        index.replace([], rows, {"composition": vectors[first : first + part_size]})
    return Index.open(folder)


@pytest.mark.parametrize(("seed", "part_size", "top"), [(0, 1, 5), (1, 7, 3), (2, 20, 8), (3, 6, 99)])
def test_search_finds_what_brute_force_finds(tmp_path: Path, seed: int, part_size: int, top: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    vectors = F.normalize(torch.randn(20, 8, generator=chance), dim=-1).half()
    texts = F.normalize(torch.randn(2, 8, generator=chance), dim=-1)
    broken = {3, 11}
    index = make_index(tmp_path / "i", vectors, part_size, broken)
    query = QueryVectors(
        (Term("text", "a"), Term("text", "b", sign=-1)),
        ("composition",) * 2,
        texts,
        torch.tensor([1.0, -1.0]),
    )
    scale = 20.0
    found = search_index(index, query, scale, top=top)
    good = [i for i in range(20) if i not in broken]
    scores = scale * vectors.float() @ texts.T
    typical = ((SOFTNESS * scores[good].double()).exp().mean(0).log()) / SOFTNESS
    total = scores[:, 0] - scores[:, 1]
    order = sorted(good, key=lambda i: -float(total[i]))[:top]
    assert [hit.path for hit in found] == [f"{i}.jpg" for i in order]
    for hit, i in zip(found, order, strict=True):
        assert hit.score == pytest.approx(float(total[i]), abs=1e-3)
        assert hit.margin == pytest.approx(float(total[i] - (typical[0] - typical[1])), abs=1e-3)
    limit = found[len(found) // 2].score
    assert all(hit.score >= limit for hit in search_index(index, query, scale, top=top, min_score=limit))


def test_an_index_without_a_readable_image_is_named(tmp_path: Path) -> None:
    index = make_index(tmp_path / "i", torch.zeros(2, 4), 2, {0, 1})
    query = QueryVectors((Term("text", "a"),), ("composition",), torch.ones(1, 4), torch.ones(1))
    with pytest.raises(UsageError, match="holds no image that could be read"):
        search_index(index, query, 1.0, top=3)


def test_a_writer_sees_what_another_one_wrote_since_it_opened_the_index(tmp_path: Path) -> None:
    early = make_index(tmp_path / "i", torch.ones(2, 4), 2, set())
    other = Index.open(early.folder)
    with other.locked():
        other.replace([], [IndexRow("new.jpg", 1, "now", "ok")], {"composition": torch.ones(1, 4)})
    with early.locked():
        early.sweep()
    again = Index.open(early.folder)
    assert again.images == 3
    assert [len(again.vectors(part)) for part in again.info.parts] == [2, 1]
