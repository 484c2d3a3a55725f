"""Which unseen pairs can exist at all: feasibility from the similarity of words.

``feas(a, o) = (f_o + f_a) / 2`` where ``f_o`` is the similarity of ``o`` to the nearest other object
seen in training in the state ``a``, and ``f_a`` that of ``a`` to the nearest other state seen in
training on ``o``; -1 where there is none. Seen pairs hold 0 and are never touched.

``mask``
    Unseen pairs below a threshold do not compete. The published code multiplies instead: a masked
    pair scores 0, and a threshold at or below 0 doubles every seen score. ``legacy`` keeps that.
``soft``
    Unseen pairs gain ``lambda`` times their standardised feasibility. A true pair that looks odd
    loses a little instead of everything.

Neither threshold nor lambda is chosen here; see :mod:`refiner_cli.evaluation.feasibility.fit`.
Shapes: ``S`` states, ``O`` objects, ``P`` pairs, ``B`` images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.core.towers.text import label_to_text
from refiner_cli.data.labels import BoolArray, LabelSpace
from refiner_cli.evaluation.metrics.score_summary import FloatArray
from refiner_cli.evaluation.metrics.seen_unseen import SweepProtocol

FeasibilityMode = Literal["none", "mask", "soft"]
THRESHOLDS = 50
LAMBDAS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # in logits per standard deviation of feasibility


@dataclass(frozen=True)
class Similarity:
    """Cosines between words, and where they come from."""

    source: str
    states: FloatArray  # S x S
    objects: FloatArray  # O x O


@dataclass(frozen=True)
class FeasibilityAdjustment:
    """What happens to scores ``B x P`` before they compete: ``scores * factor + offset``, then the mask."""

    allowed: BoolArray | None = None  # P
    factor: Tensor | None = None  # P float32
    offset: Tensor | None = None  # P float32

    def apply(self, scores: Tensor) -> Tensor:
        if self.factor is not None:
            scores = scores * self.factor.to(scores.device)
        return scores if self.offset is None else scores + self.offset.to(scores.device)


@torch.no_grad()
def text_tower_similarity(backbone: Backbone, space: LabelSpace) -> Similarity:
    """Similarity of the names as the frozen text tower reads them."""

    def cosines(names: Sequence[str]) -> FloatArray:
        vectors = F.normalize(backbone.text.encode_texts([label_to_text(name) for name in names]), dim=-1)
        table: FloatArray = (vectors @ vectors.T).cpu().double().numpy()  # MPS has no float64
        return table

    source = f"the text tower of {backbone.spec.name} ({backbone.spec.pretrained})"
    return Similarity(source, cosines(space.states), cosines(space.objects))


def pair_feasibility(space: LabelSpace, similarity: Similarity) -> FloatArray:
    """P float64 in -1..1 for unseen pairs, 0 for seen ones."""
    by_object = _nearest(space.seen_table, similarity.objects)  # S x O
    by_state = _nearest(space.seen_table.T, similarity.states).T
    table = (by_object + by_state) / 2
    return np.where(space.seen, 0.0, table[space.pair_state, space.pair_object])


def _nearest(shown: BoolArray, similarity: FloatArray) -> FloatArray:
    """R x K: for each row, how near the nearest other of its shown columns is; -1 without any."""
    others = similarity.copy()
    np.fill_diagonal(others, -np.inf)
    return np.stack([others[:, row].max(1, initial=-1.0) for row in shown])


def candidate_values(mode: FeasibilityMode, space: LabelSpace, feasible: FloatArray) -> list[float]:
    """The values to choose from, smallest first; thresholds span the unseen pairs."""
    unseen = feasible[~space.seen]
    if mode == "none" or not len(unseen):
        return []
    return (
        [float(v) for v in np.linspace(unseen.min(), unseen.max(), THRESHOLDS)]
        if mode == "mask"
        else [*LAMBDAS]
    )


def make_adjustment(
    mode: FeasibilityMode, value: float, space: LabelSpace, feasible: FloatArray, protocol: SweepProtocol
) -> FeasibilityAdjustment:
    """The adjustment for a threshold (mask) or a lambda (soft) over the candidates of ``space``."""
    if mode == "soft":
        unseen = feasible[~space.seen]
        deviation = max(float(unseen.std()), 1e-12)
        offset = np.where(space.seen, 0.0, value * (feasible - unseen.mean()) / deviation)
        return FeasibilityAdjustment(offset=torch.from_numpy(offset.astype(np.float32)))
    passes = feasible >= value
    if protocol == "legacy":  # seen pairs hold 0, and pass a threshold below that
        return FeasibilityAdjustment(
            factor=torch.from_numpy((passes.astype(np.float32) + space.seen).astype(np.float32))
        )
    return FeasibilityAdjustment(allowed=passes | space.seen)
