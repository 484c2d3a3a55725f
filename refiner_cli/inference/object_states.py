"""Several states of one object: every state of the best objects with a probability of its own.

In a ranking of pairs states compete, so that of a car that is dirty and broken one state takes the
probability of the other. Here each state ``s`` of an object ``o`` is compared with what a state that the
image does not show would score: the median of the object's other states, as most are absent::

    p(s | o) = sigmoid((z(s, o) - median over s' != s of z(s', o)) / T - log(S - 1))

``z`` are the scores of the pairs, ``T`` is the temperature of their probabilities in the open world, ``S`` is
the number of states, and one of S is expected beforehand. With two states this is their softmax.

Shapes: ``B`` images, ``S`` states.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from refiner_cli.core.models.base import ImageVectors, Model
from refiner_cli.data.labels import LabelSpace
from refiner_cli.inference.recogniser import ObjectStates, Prediction, Primitive, Recogniser


class MultiStateRecogniser(Recogniser):
    """A recogniser whose predictions list every state of the best objects.

    Args:
        count: of how many objects.
    """

    def __init__(self, model: Model, space: LabelSpace | None, precision: torch.dtype, count: int) -> None:
        super().__init__(model, space, precision)
        self.count = count
        self.by_object: dict[str, Recogniser] = {}

    def fingerprint(self) -> dict[str, str | int]:
        return super().fingerprint() | {"object_states": self.count}

    def predict_vectors(self, vectors: ImageVectors, *, top_k: int = 5) -> list[Prediction]:
        made = super().predict_vectors(vectors, top_k=max(top_k, self.count))
        found: list[dict[str, ObjectStates]] = [{} for _ in made]
        objects = {one.name for prediction in made for one in prediction.objects[: self.count]}
        for obj in sorted(objects):
            rows = [i for i, prediction in enumerate(made)
                    if obj in {one.name for one in prediction.objects[: self.count]}]  # fmt: skip
            for row, states in zip(rows, self.states_of(obj, vectors.take(torch.tensor(rows))), strict=True):
                found[row][obj] = states
        return [
            replace(
                prediction,
                compositions=prediction.compositions[:top_k],
                states=prediction.states[:top_k],
                objects=prediction.objects[:top_k],
                object_states=tuple(own[one.name] for one in prediction.objects[: self.count]),
            )
            for prediction, own in zip(made, found, strict=True)
        ]

    def states_of(self, obj: str, vectors: ImageVectors) -> list[ObjectStates]:
        """Every state of an object in some images."""
        if obj not in self.by_object:
            pairs = [(state, obj) for state in self.space.states]
            space = LabelSpace.from_pairs(pairs, self.model.space.seen_pairs & set(pairs))
            self.by_object[obj] = Recogniser(self.model, space, self.precision)
        own = self.by_object[obj]
        ranked = own.rank(vectors, top_k=len(own.space.pairs))
        temperature = self.model.calibration.confidence(is_open=True).temperatures.pair
        probabilities = state_probabilities(ranked.scores / temperature)
        return [
            ObjectStates(obj, tuple(Primitive(own.space.pairs[i][0], p) for i, p in zip(*image, strict=True)))
            for image in zip(ranked.pairs.tolist(), probabilities.tolist(), strict=True)
        ]


def state_probabilities(scores: Tensor) -> Tensor:
    """Scores / T of an object's states ``B x S``, best first -> the probability of each on its own.

    The median of an even number of states is the lower one.
    """
    S = scores.shape[1]
    values = scores.double() if scores.device.type != "mps" else scores.float()
    if S == 1:
        return torch.full_like(values, 0.5)
    middle = (S - 1) // 2  # of the S - 1 others, counted from the best
    rank = torch.arange(S, device=scores.device)
    typical = values[:, torch.where(rank <= middle, middle + 1, middle)]  # B x S
    return torch.sigmoid(values - typical - math.log(S - 1))
