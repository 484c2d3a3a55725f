from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from refiner_cli.evaluation.metrics.bias_sweep import sweep
from refiner_cli.evaluation.metrics.breakdown import (
    confidences,
    confusion,
    hardest_unseen,
    per_image,
    per_pair,
    per_primitive,
    reliability,
    top_k,
    write_per_image,
)
from tests.conftest import parse_rows
from tests.evaluation.cases import CASES, Case, make_case

CASE = make_case(31, images=120, skill=1.5)
SUMMARY = CASE.summary(120)


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_top_k_counts_candidates_that_score_at_least_as_much(case: Case) -> None:
    own = case.scores[np.arange(len(case.truth)), case.truth][:, None]
    ahead = ((case.scores >= own) & case.allowed).sum(1) - 1
    for k, found in top_k(case.summary(), [1, 2, 100]).items():
        assert found["all"] == pytest.approx(100 * ((ahead < k) & case.allowed[case.truth]).mean())


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_tables_add_up(case: Case) -> None:
    summary = case.summary()
    for rows, right in (
        (per_pair(summary, case.space, 0.3), summary.correct(0.3)),
        (per_primitive(summary, case.space, "state", 0.3), None),
        (per_primitive(summary, case.space, "object", 0.3), None),
    ):
        assert sum(row.images for row in rows) == len(summary)
        if right is not None:
            assert sum(row.images * row.accuracy for row in rows) == pytest.approx(100 * right.sum())


def test_states_and_objects_agree_with_the_sweep_without_bias() -> None:
    metrics = sweep(SUMMARY, CASE.space)
    for part, expected in (("state", metrics.state_acc), ("object", metrics.object_acc)):
        rows = per_primitive(SUMMARY, CASE.space, part)
        assert sum(row.images * row.accuracy for row in rows) / len(SUMMARY) == pytest.approx(expected)


def test_the_hardest_pairs_are_unseen_and_worst_first() -> None:
    rows = per_pair(SUMMARY, CASE.space)
    hardest = hardest_unseen(rows, 3)
    unseen = [row for row in rows if not row.seen]
    assert len(hardest) == min(3, len(unseen))
    assert hardest[0].accuracy == min(row.accuracy for row in unseen)
    assert all(row.seen is False for row in hardest)


def test_a_row_says_what_it_was_mistaken_for() -> None:
    row = next(row for row in per_pair(SUMMARY, CASE.space) if row.mistaken)
    truth = [" ".join(CASE.space.pairs[i]) for i in SUMMARY.truth]
    found = [" ".join(CASE.space.pairs[i]) for i in SUMMARY.predictions()]
    assert row.mistaken == sum(
        (t, f) == (row.name, row.mistaken_for) for t, f in zip(truth, found, strict=True)
    )


def test_confusion_rows_are_shares() -> None:
    full = confusion(SUMMARY, CASE.space, "object", limit=99)
    assert full.percent[full.images > 0].sum(1) == pytest.approx(100)
    assert len(confusion(SUMMARY, CASE.space, "object", limit=2).names) == 2


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_confidence_is_the_softmax_of_the_prediction(case: Case) -> None:
    biased = np.where(case.allowed, case.scores + 0.5 * ~case.space.seen, -np.inf).astype(np.float64)
    share = np.exp(biased - biased.max(1, keepdims=True))
    np.testing.assert_allclose(confidences(case.summary(), 0.5), 1 / share.sum(1), rtol=1e-4)


def test_reliability_counts_every_image_once() -> None:
    found = reliability(SUMMARY)
    assert found.images.sum() == len(SUMMARY)
    filled = found.images > 0
    gap = np.abs(found.confidence - found.accuracy)[filled] * found.images[filled]
    assert found.error == pytest.approx(gap.sum() / len(SUMMARY))


def test_per_image_lines(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(len(SUMMARY))]
    write_per_image(tmp_path / "images.jsonl", per_image(SUMMARY, CASE.space, names))
    rows = parse_rows((tmp_path / "images.jsonl").read_text())
    assert [row["image"] for row in rows] == names
    assert sum(row["correct"] for row in rows) == SUMMARY.correct().sum()
    assert all((row["rank"] == 1) == row["correct"] for row in rows)
    assert [tuple(row["truth"]) for row in rows] == [CASE.space.pairs[t] for t in SUMMARY.truth]
