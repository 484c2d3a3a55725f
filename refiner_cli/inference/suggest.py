"""What to label next: images of an index that teach a model most, in two passes over the vectors.

First come images of pairs that training never saw, one per pair: the most probable image of the pairs that
the collection seems to hold most often. Then come images that the model is undecided about and that are
unlike those before them: of the most uncertain ones the next is always

    argmax over images  (1 - (p1 - p2)) * min over chosen (1 - cos)

with p1 and p2 the probabilities of the best two pairs: margin sampling, weighted by the distance of k-center
greedy (Sener and Savarese: Active learning for convolutional neural networks, a core-set approach. ICLR
2018).

Shapes: ``N`` images of a part, ``C`` candidates, ``P`` pairs, ``D`` joint width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refiner_cli.core.models.base import ImageVectors
from refiner_cli.errors import UsageError
from refiner_cli.files import atomic_file
from refiner_cli.inference.columns import RowDict
from refiner_cli.inference.formats import ImageRow, json_line
from refiner_cli.inference.index import Index, IndexRow, PartInfo
from refiner_cli.inference.indexing import on_device
from refiner_cli.inference.recogniser import Prediction, Recogniser
from refiner_cli.inference.row_files import note_photos
from refiner_cli.inference.scan import FileVersion
from refiner_cli.inference.search import BestImages, IndexPlace

SUGGESTIONS_SCHEMA = "refiner.suggestions/1"
CANDIDATES = 50  # uncertain images that are compared, per image that is suggested
UNSEEN_SHARE = 0.5  # of the suggestions, at most, for pairs that training never saw
SAME = 1e-3  # distance below which two images are copies of each other
BLOCK_SCORES = 1 << 22  # scores computed at once
TOP_K = 3  # guesses per suggestion


@dataclass(frozen=True)
class Suggestion:
    """An image to label, and why."""

    row: ImageRow
    rank: int  # from 1
    reason: str  # "unseen pair" or "uncertain"
    note: str  # a sentence

    def to_json(self) -> dict[str, Any]:
        return {**self.row.to_json(), "rank": self.rank, "reason": self.reason, "note": self.note}


@dataclass
class UnseenPairs:
    """For every pair that training never saw: the images that look like it, and the most probable of them."""

    images: Tensor  # P int64
    probability: Tensor  # P float64
    places: dict[int, IndexPlace]

    @classmethod
    def empty(cls, pairs: int) -> UnseenPairs:
        return cls(torch.zeros(pairs, dtype=torch.int64), torch.zeros(pairs, dtype=torch.float64), {})

    def update(self, part: PartInfo, rows: Tensor, pairs: Tensor, probabilities: Tensor) -> None:
        """Take in rows of a part whose best pairs are unseen ones."""
        self.images += torch.bincount(pairs, minlength=len(self.images))
        for row, pair, value in zip(rows.tolist(), pairs.tolist(), probabilities.tolist(), strict=True):
            if value > self.probability[pair]:
                self.probability[pair] = value
                self.places[pair] = (part, row)

    def most_frequent(self, count: int) -> list[tuple[int, IndexPlace]]:
        """Up to ``count`` pairs with their best images, those with most images first."""
        order = sorted(self.places, key=lambda pair: (-int(self.images[pair]), pair))
        return [(pair, self.places[pair]) for pair in order[:count]]


def suggest_images(
    index: Index,
    recogniser: Recogniser,
    count: int,
    *,
    is_labelled: Callable[[str], bool] | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Suggestion]:
    """Up to ``count`` images to label next, most useful first; copies of one another count once.

    Args:
        is_labelled: of an image's path; labelled ones are not suggested, nor images like them. None: no
            image has a label.

    Raises:
        UsageError: the index holds no image that is not labelled.
        ModelFileError: a part is missing or damaged.
    """
    unseen, uncertain, done = (
        UnseenPairs.empty(len(recogniser.space.pairs)),
        BestImages.empty(CANDIDATES * count),
        0,
    )
    labelled: dict[str, Tensor] = {}  # by part name
    for part in index.info.parts:
        readable, has_label = index.readable(part), torch.zeros(part.images, dtype=torch.bool)
        if is_labelled:
            has_label = torch.tensor([is_labelled(path) for path in index.paths(part)], dtype=torch.bool)
            labelled[part.name] = readable & has_label
        collect(recogniser, index.vectors(part), part, readable & ~has_label, (unseen, uncertain))
        done += part.images
        progress(done, index.images)
    if not uncertain.places:
        raise UsageError(f"The index {index.folder} holds no image that is left to label.")
    first = unseen.most_frequent(int(UNSEEN_SHARE * count))
    places = [place for _, place in first] + uncertain.places
    weights = torch.cat([torch.full((len(first),), torch.inf), uncertain.scores.float()])  # C
    chosen = choose_diverse(
        gather(index, places, recogniser), weights, count, labelled_vectors(index, labelled)
    )
    return list(suggestions(index, recogniser, [places[i] for i in chosen], [i < len(first) for i in chosen]))


def collect(
    recogniser: Recogniser,
    vectors: ImageVectors,
    part: PartInfo,
    free: Tensor,
    into: tuple[UnseenPairs, BestImages],
) -> None:
    """Score the free images of a part, and keep the ones of unseen pairs and the uncertain ones."""
    unseen, uncertain = into
    seen = torch.from_numpy(recogniser.space.seen)
    step = max(1, BLOCK_SCORES // len(recogniser.space.pairs))
    for start in range(0, part.images, step):
        rows = slice(start, start + step)
        ranked = recogniser.rank(on_device(vectors, rows, recogniser), top_k=2)
        best, probabilities = ranked.pairs[:, 0].cpu(), ranked.probabilities.cpu()
        rival = probabilities[:, 1] if probabilities.shape[1] > 1 else torch.zeros(len(best))
        uncertain.update(part, start, 1 - (probabilities[:, 0] - rival), free[rows])
        new = (free[rows] & ~seen[best]).nonzero().squeeze(1)
        unseen.update(part, new + start, best[new], probabilities[new, 0])


def gather(index: Index, places: Sequence[IndexPlace], recogniser: Recogniser) -> Tensor:
    """The composition vectors of some images, ``C x D`` float32 on the model's device."""
    found = torch.empty(len(places), index.info.width, device=recogniser.model.device)
    by_part: dict[str, list[int]] = {}
    for i, (part, _) in enumerate(places):
        by_part.setdefault(part.name, []).append(i)
    for part in index.info.parts:
        if part.name in by_part:
            wanted = by_part[part.name]
            rows = [places[i][1] for i in wanted]
            found[wanted] = on_device(index.vectors(part), rows, recogniser).composition
    return found


def labelled_vectors(index: Index, labelled: dict[str, Tensor]) -> Iterator[Tensor]:
    """The composition vectors of labelled images, part by part, ``N' x D`` float16."""
    for part in index.info.parts:
        if part.name in labelled and labelled[part.name].any():
            yield index.vectors(part).composition[labelled[part.name]]


def choose_diverse(vectors: Tensor, weights: Tensor, count: int, centres: Iterator[Tensor]) -> list[int]:
    """Greedily choose rows of ``C x D`` by weight times distance to the nearest one chosen.

    Args:
        weights: ``C``; rows of infinite weight come first, in their order.
        centres: vectors that count as chosen already.
    """
    vectors, weights = torch.nn.functional.normalize(vectors, dim=-1), weights.to(vectors.device)
    distance = torch.full_like(weights, 2.0)  # the largest there is
    for block in centres:
        near = (vectors @ block.to(vectors.device, torch.float32).T).amax(1)
        distance = torch.minimum(distance, 1 - near)
    order = weights.isinf().nonzero().squeeze(1).tolist()  # what comes first, next one last
    order.reverse()
    chosen: list[int] = []
    while len(chosen) < count:
        gain = torch.where(distance > SAME, weights.clamp(max=1e6) * distance, -1.0)
        best = order.pop() if order else int(gain.argmax())
        if float(gain[best]) < 0:
            if order or float(gain.max()) >= 0:
                continue
            break
        chosen.append(best)
        distance = torch.minimum(distance, 1 - vectors @ vectors[best])
        distance[best] = 0.0
    return chosen


def suggestions(
    index: Index, recogniser: Recogniser, places: Sequence[IndexPlace], is_unseen: Sequence[bool]
) -> Iterator[Suggestion]:
    """The chosen images with what the model thinks of them."""
    rows: dict[IndexPlace, IndexRow] = {}
    for part in dict.fromkeys(part for part, _ in places):
        own = [place for other, place in places if other == part]
        rows |= zip([(part, place) for place in own], index.rows(part, own), strict=True)
    for rank, ((part, place), unseen) in enumerate(zip(places, is_unseen, strict=True), 1):
        vectors = on_device(index.vectors(part), [place], recogniser)
        prediction = recogniser.predict_vectors(vectors, top_k=TOP_K)[0]
        row = rows[part, place]
        image = ImageRow(row.path, prediction, "", FileVersion(row.size, row.modified))
        reason = "unseen pair" if unseen else "uncertain"
        yield Suggestion(image, rank, reason, describe(prediction, unseen=unseen))


def describe(prediction: Prediction, *, unseen: bool) -> str:
    """Why an image is suggested, for a person."""
    best, *others = prediction.compositions
    name = f"{best.state} {best.object}"
    if unseen:
        return f"looks like {name!r} ({best.probability:.0%}), which training never saw"
    if not others:
        return f"looks like {name!r} ({best.probability:.0%})"
    rival = others[0]
    return (
        f"undecided between {name!r} ({best.probability:.0%}) and "
        f"'{rival.state} {rival.object}' ({rival.probability:.0%})"
    )


def write_suggestions(file: Path, rows: Sequence[RowDict], index: Index) -> None:
    """Write suggestions as rows of predictions, and beside them where their photos lie."""
    with atomic_file(file) as part, part.open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(map(json_line, rows))
    note_photos(file, SUGGESTIONS_SCHEMA, index.info.places)
