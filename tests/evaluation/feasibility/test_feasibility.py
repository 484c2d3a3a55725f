from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import DatasetError
from refiner_cli.evaluation.feasibility.feasibility import (
    THRESHOLDS,
    Similarity,
    candidate_values,
    make_adjustment,
    pair_feasibility,
)
from refiner_cli.evaluation.feasibility.word_vectors import word_vector_similarity
from refiner_cli.evaluation.metrics.streaming import ScoreStream
from tests.evaluation.cases import make_case


def similar(seed: int, space: LabelSpace) -> Similarity:
    rng = np.random.default_rng(seed)

    def table(size: int) -> np.ndarray:
        vectors = rng.normal(size=(size, 5))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors @ vectors.T

    return Similarity("random", table(len(space.states)), table(len(space.objects)))


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_feasibility_is_what_the_text_says(seed: int, seen: float) -> None:
    space = make_case(seed, states=4, objects=5, seen=seen).space
    words = similar(seed, space)
    found = pair_feasibility(space, words)
    for p, (a, o) in enumerate(space.pairs):
        s, t = space.states.index(a), space.objects.index(o)
        objects = [
            words.objects[t, i] for i, x in enumerate(space.objects) if x != o and (a, x) in space.seen_pairs
        ]
        states = [
            words.states[s, i] for i, x in enumerate(space.states) if x != a and (x, o) in space.seen_pairs
        ]
        expected = (max([-1.0, *objects]) + max([-1.0, *states])) / 2
        assert found[p] == pytest.approx(0.0 if (a, o) in space.seen_pairs else expected)


CASE = make_case(5, images=30, states=4, objects=5)
SEEN = CASE.space.seen
FEASIBLE = pair_feasibility(CASE.space, similar(5, CASE.space))


def test_thresholds_span_the_unseen_pairs() -> None:
    values = candidate_values("mask", CASE.space, FEASIBLE)
    assert len(values) == THRESHOLDS
    assert (values[0], values[-1]) == (FEASIBLE[~SEEN].min(), FEASIBLE[~SEEN].max())
    assert candidate_values("soft", CASE.space, FEASIBLE)[0] == 0


def test_the_exact_mask_takes_pairs_out_of_the_race() -> None:
    threshold = float(np.median(FEASIBLE[~SEEN]))
    mask = make_adjustment("mask", threshold, CASE.space, FEASIBLE, "exact")
    stream = ScoreStream(CASE.space, mask.allowed)
    stream.update(mask.apply(torch.from_numpy(CASE.scores)), CASE.truth)
    summary = stream.summary()
    assert set(summary.best_unseen_index) <= set(np.flatnonzero(~SEEN & (threshold <= FEASIBLE)))
    assert (summary.best_seen == CASE.scores[:, SEEN].max(1)).all()


@pytest.mark.parametrize(("threshold", "factor_of_seen"), [(-0.2, 2.0), (0.0, 2.0), (0.2, 1.0)])
def test_the_legacy_mask_multiplies_as_the_published_code_does(
    threshold: float, factor_of_seen: float
) -> None:
    mask = make_adjustment("mask", threshold, CASE.space, FEASIBLE, "legacy")
    scores = torch.from_numpy(CASE.scores)
    expected = CASE.scores * np.where(SEEN, factor_of_seen, threshold <= FEASIBLE).astype(np.float32)
    assert mask.allowed is None
    assert mask.apply(scores).numpy().tolist() == expected.tolist()


def test_soft_moves_unseen_pairs_by_lambda_deviations() -> None:
    moved = (
        make_adjustment("soft", 2.0, CASE.space, FEASIBLE, "exact")
        .apply(torch.zeros(1, len(SEEN)))[0]
        .numpy()
    )
    assert not moved[SEEN].any()
    assert moved[~SEEN].mean() == pytest.approx(0, abs=1e-6)
    assert moved[~SEEN].std() == pytest.approx(2)
    assert (np.argsort(moved[~SEEN]) == np.argsort(FEASIBLE[~SEEN])).all()


def space_of(states: list[str], objects: list[str]) -> LabelSpace:
    return LabelSpace(tuple(states), tuple(objects), (), frozenset())


TABLE = (
    "the 9 9\nfake 1 0\nfake name@domain.com 5 5\nfur 0 1\nold 1 1\nmid 1 0\ncalf 0 2\nboots 3 4\ntower 0 1\n"
)


def test_names_are_read_as_published_and_parts_averaged(tmp_path: Path) -> None:
    (tmp_path / "glove.txt").write_text(TABLE)
    found = word_vector_similarity(
        tmp_path / "glove.txt", space_of(["Faux.Fur", "OLD"], ["eiffel_tower", "boots", "mid-calf"])
    )
    assert found.states[0, 1] == pytest.approx(1)  # (fake + fur) / 2 points where old does
    assert found.objects[0, 1] == pytest.approx(0.8)
    assert found.objects[0, 2] == pytest.approx(2 / np.sqrt(5))
    assert found.source == "glove.txt"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TABLE, "no vector for 1 names, 'green'"),
        ("old 1 2\ngreen 1\n", "line 2: 2 finite numbers"),
        ("old 1 2\ngreen 1 x\n", "line 2: could not convert"),
        ("old 1 2\ngreen 1 nan\n", "line 2: 2 finite numbers"),
        (None, "does not exist"),
    ],
)
def test_bad_tables_name_the_place(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "glove.txt").write_text(text)
    with pytest.raises(DatasetError, match=says):
        word_vector_similarity(tmp_path / "glove.txt", space_of(["old", "green"], ["boots"][:0]))
