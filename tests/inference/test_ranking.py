"""Pairs scored in blocks rank as all at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refiner_cli.errors import ModelFileError
from refiner_cli.inference.ranking import GROUP, RankedScores, ScoreRanking, top_columns


def rank(
    scores: torch.Tensor,
    state: torch.Tensor,
    obj: torch.Tensor,
    block: int,
    top_k: int,
    *,
    is_grid: bool = False,
) -> RankedScores:
    ranking = ScoreRanking(len(scores), (4, 5), top_k, scores.device)
    for start in range(0, scores.shape[1], block):
        rows = slice(start, start + block)
        ranking.update(scores[:, rows], start, state[rows], obj[rows], is_grid=is_grid)
    return ranking.result()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), block=st.integers(1, 21), top_k=st.integers(1, 25))
def test_blocks_of_any_size_give_the_softmax_over_all(seed: int, block: int, top_k: int) -> None:
    random = torch.Generator().manual_seed(seed)
    scores = 40 * torch.randn(3, 20, generator=random)
    state, obj = (torch.randint(size, (20,), generator=random) for size in (4, 5))
    found = rank(scores, state, obj, block, top_k)
    share = scores.double().softmax(1)
    best = scores.topk(min(top_k, 20))
    assert torch.equal(found.pairs, best.indices)
    assert torch.equal(found.scores, best.values)
    torch.testing.assert_close(found.probabilities, share.gather(1, best.indices))
    for part, index, size in ((found.states, state, 4), (found.objects, obj, 5)):
        torch.testing.assert_close(
            part, torch.zeros(3, size, dtype=torch.float64).index_add_(1, index, share)
        )


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), states=st.integers(1, 4))
def test_a_full_grid_of_pairs_is_summed_as_any_other(seed: int, states: int) -> None:
    scores = 40 * torch.randn(3, 20, generator=torch.Generator().manual_seed(seed))
    state, obj = torch.arange(20) // 5, torch.arange(20) % 5
    ours, theirs = (rank(scores, state, obj, 5 * states, 3, is_grid=is_grid) for is_grid in (True, False))
    torch.testing.assert_close(vars(ours), vars(theirs))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 999),
    columns=st.integers(1, 12 * GROUP),
    top_k=st.integers(1, 4),
    masked=st.booleans(),
)
def test_the_best_columns_are_those_of_topk(seed: int, columns: int, top_k: int, masked: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    scores = torch.stack([torch.randperm(columns, generator=random) for _ in range(3)]).float()
    if masked:  # whole groups of pairs that may not compete
        scores[:, : columns // 2] = -torch.inf
    values, indices = top_columns(scores, top_k)
    assert torch.equal(values, scores.topk(min(top_k, columns)).values)
    assert torch.equal(scores.gather(1, indices), values)
    assert all(len(set(row)) == len(row) for row in indices.tolist())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_an_error(value: float) -> None:
    scores = torch.zeros(2, 20)
    scores[1, 7] = value
    with pytest.raises(ModelFileError, match="finite"):
        rank(scores, torch.zeros(20, dtype=torch.int64), torch.zeros(20, dtype=torch.int64), 6, 2)
