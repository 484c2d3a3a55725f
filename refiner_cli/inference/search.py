"""Search an index: the images whose vectors fit a query best, in one pass over the vectors.

The *score* of a term is the model's logit. Texts differ in how similar they are to every image, so the
*margin* subtracts what the collection's images give the text anyway (hubness correction at full
strength)::

    margin(image, t) = s(image, t) - 1/T log mean over images exp(T s(image, t))

Margins of different queries can be compared; a query of several terms has the sum of theirs, excluded
terms counting negative.

Shapes: ``N`` images of a part, ``D`` joint width, ``T`` terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refiner_cli.core.models.base import ImageVectors
from refiner_cli.core.models.hubness import SOFTNESS
from refiner_cli.errors import UsageError
from refiner_cli.inference.columns import RowDict
from refiner_cli.inference.index import Index, PartInfo
from refiner_cli.inference.query import QueryVectors

BLOCK = 8192  # images compared at once
IndexPlace = tuple[PartInfo, int]  # a part and a row in it


@dataclass(frozen=True)
class Hit:
    """One image that fits."""

    path: str
    rank: int  # from 1
    score: float
    margin: float

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "rank": self.rank,
            "score": round(self.score, 4),
            "margin": round(self.margin, 4),
        }

    def to_row(self) -> RowDict:
        """A row of a gallery."""
        note = f"score {self.score:.2f}, margin {self.margin:+.2f}"
        return {"path": self.path, "error": None, "predictions": [], "note": f"{self.rank}. {note}"}


@dataclass
class BestImages:
    """The best images so far, in constant memory."""

    count: int
    scores: Tensor  # up to count, descending
    places: list[IndexPlace]

    @classmethod
    def empty(cls, count: int) -> BestImages:
        return cls(count, torch.empty(0, dtype=torch.float64), [])

    def update(self, part: PartInfo, first: int, scores: Tensor, usable: Tensor) -> None:
        """Take in the scores ``N`` of a part's rows from ``first`` on; only ``usable`` ones compete."""
        rows = usable.nonzero().squeeze(1)
        if not len(rows):
            return
        best = scores[rows].double().topk(min(self.count, len(rows)))
        new = [(part, first + int(rows[i])) for i in best.indices.tolist()]
        merged = torch.cat([self.scores, best.values.cpu()])
        # Stable, so that of equals the image that came first stays in front.
        order = merged.argsort(descending=True, stable=True)[: self.count]
        places = self.places + new
        self.scores, self.places = merged[order], [places[i] for i in order.tolist()]


@dataclass
class TypicalScore:
    """``1/T log mean exp(T s)`` over a stream of scores, one per term."""

    total: Tensor  # T, log of the sum
    images: int = 0

    @classmethod
    def empty(cls, terms: int) -> TypicalScore:
        return cls(torch.full((terms,), -math.inf, dtype=torch.float64))

    def update(self, scores: Tensor) -> None:
        """Take in scores ``N x T``."""
        if len(scores):
            block = (SOFTNESS * scores.double()).logsumexp(0).cpu()
            self.total = torch.logaddexp(self.total, block)
            self.images += len(scores)

    def value(self) -> Tensor:
        return (self.total - math.log(self.images)) / SOFTNESS


def search_index(
    index: Index,
    query: QueryVectors,
    scale: float,
    *,
    top: int,
    min_score: float = -math.inf,
    min_margin: float = -math.inf,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Hit]:
    """The ``top`` best images of an index.

    Args:
        scale: tau, the factor on cosine similarities.
        min_score: leave out images below this score; ``min_margin`` alike.

    Raises:
        UsageError: the index holds no image with vectors.
        ModelFileError: a part is missing or damaged.
    """
    best, typical, done = BestImages.empty(top), TypicalScore.empty(len(query.terms)), 0
    signs = query.signs.cpu()
    for part in index.info.parts:
        usable = index.readable(part)
        vectors = index.vectors(part)
        for first in range(0, part.images, BLOCK):
            rows = slice(first, first + BLOCK)
            scores = term_scores(vectors[rows], query, scale).cpu()  # N x T; MPS has no float64
            typical.update(scores[usable[rows]])
            best.update(part, first, scores @ signs, usable[rows])
        done += part.images
        progress(done, index.images)
    if not typical.images:
        raise UsageError(f"The index {index.folder} holds no image that could be read.")
    offset = float(typical.value() @ signs.double())
    return list(hits(index, best, offset, max(min_score, min_margin + offset)))


def term_scores(vectors: ImageVectors, query: QueryVectors, scale: float) -> Tensor:
    """Scaled cosine similarities ``N x T`` in float32."""
    device = query.texts.device
    columns: dict[int, Tensor] = {}
    for role in dict.fromkeys(query.roles):
        of_role = [i for i, own in enumerate(query.roles) if own == role]
        images = getattr(vectors, role).to(device, torch.float32)  # N x D
        texts = scale * torch.stack([query.texts[i] for i in of_role]).float()  # few, unlike the images
        columns.update(zip(of_role, (images @ texts.T).unbind(1), strict=True))
    return torch.stack([columns[i] for i in range(len(query.roles))], 1)


def hits(index: Index, best: BestImages, offset: float, min_score: float) -> Iterator[Hit]:
    """The best images with their paths."""
    names: dict[IndexPlace, str] = {}
    for part in dict.fromkeys(part for part, _ in best.places):
        rows = [place for own, place in best.places if own == part]
        names |= dict(zip([(part, place) for place in rows], index.paths(part, rows), strict=True))
    for rank, (score, place) in enumerate(zip(best.scores.tolist(), best.places, strict=True), 1):
        if score < min_score:
            return
        yield Hit(names[place], rank, score, score - offset)
