"""The friendly level: a model and a vocabulary, images in, compositions out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from refiner_cli.core.models.base import Model, TextBank
from refiner_cli.core.runtime.device import autocast
from refiner_cli.data.decode import to_rgb
from refiner_cli.data.images import Preprocess, decode
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import UsageError


@dataclass(frozen=True)
class Composition:
    """One guess: a state of an object."""

    state: str
    object: str
    score: float  # the final score, the seen-unseen bias included
    probability: float  # among all candidates
    seen: bool  # whether training saw the pair


@dataclass(frozen=True)
class Primitive:
    """A state or an object on its own."""

    name: str
    probability: float  # summed over the candidates that hold it


@dataclass(frozen=True)
class Prediction:
    """What one image shows, best first."""

    compositions: tuple[Composition, ...]
    states: tuple[Primitive, ...]
    objects: tuple[Primitive, ...]


class Recogniser:
    """Recognises the compositions of a label space.

    Args:
        model: a stored model, on its device.
        space: the candidates; by default those that the model was made for.
        precision: what to compute in.
    """

    def __init__(
        self, model: Model, space: LabelSpace | None = None, precision: torch.dtype = torch.float32
    ) -> None:
        self.model = model.eval()
        self.space = space or model.space
        self.precision = precision
        self.preprocess = Preprocess(model.backbone.spec.preprocess)

    @cached_property
    def bank(self) -> TextBank:
        """The text vectors of all candidates, encoded once."""
        with torch.no_grad(), autocast(self.model.device, self.precision):
            return self.model.encode_pairs(self.space)

    @cached_property
    def bias(self) -> Tensor:
        """``P``: what unseen pairs get to compete fairly, as validation chose it."""
        seen = torch.from_numpy(self.space.seen).to(self.model.device)
        return torch.where(seen, 0.0, self.model.calibration.bias)

    @property
    def has_queries(self) -> bool:
        """Whether the model has concept queries, so that :meth:`look` can say what they look at."""
        return self.model.has_queries

    def query_attention(self, images: Tensor) -> Tensor:
        """What each concept query looks at in preprocessed images, ``B x K x L`` over the patches.

        Raises:
            UsageError: the model has no concept queries.
        """
        if not self.model.has_queries:
            raise UsageError("This model has no concept queries, so there is nothing that they look at.")
        with autocast(self.model.device, self.precision):
            return self.model.query_attention(images.to(self.model.device))

    def fingerprint(self) -> dict[str, str | int]:
        """What decides the scores of an image: the model, the candidates, preprocessing, precision."""
        model = self.model
        digest = hashlib.sha256(model.backbone.fingerprint().encode())
        digest.update(json.dumps([type(model).__name__, model.config.model_dump()]).encode())
        digest.update(json.dumps(model.calibration.to_json()).encode())
        for name, value in sorted(model.saved_tensors().items()):
            digest.update(name.encode())
            digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        preprocessing = json.dumps(model.backbone.spec.preprocess, sort_keys=True, default=list)
        return {
            "model": digest.hexdigest()[:16],
            "vocabulary": self.space.fingerprint(),
            "preprocessing": hashlib.sha256(preprocessing.encode()).hexdigest()[:16],
            "precision": str(self.precision).removeprefix("torch."),
        }

    def predict(
        self, images: Iterable[Image.Image | Path | str], *, top_k: int = 5, batch: int = 32
    ) -> list[Prediction]:
        """Recognise images: PIL images, or paths of image files.

        Raises:
            DatasetError: a file cannot be read; the message names it.
        """
        opened = [
            to_rgb(image) if isinstance(image, Image.Image) else decode(Path(image)) for image in images
        ]
        found: list[Prediction] = []
        for start in range(0, len(opened), batch):
            pixels = torch.stack([self.preprocess(image) for image in opened[start : start + batch]])
            found += self.predict_tensor(pixels, top_k=top_k)
        return found

    @torch.no_grad()
    def predict_tensor(self, images: Tensor, *, top_k: int = 5) -> list[Prediction]:
        """Recognise preprocessed images, ``B x 3 x H x W``."""
        with autocast(self.model.device, self.precision):
            scores = self.model.score(self.model.encode_images_tta(images.to(self.model.device)), self.bank)
            total = self.model.combine(scores, self.space) + self.bias  # B x P
        probability = total.double().softmax(-1)
        best = total.topk(min(top_k, total.shape[1]))
        shares = probability.gather(1, best.indices)
        states, objects = (
            self.top(self.marginal(probability, torch.from_numpy(index), len(names)), names, top_k)
            for index, names in (
                (self.space.pair_state, self.space.states),
                (self.space.pair_object, self.space.objects),
            )
        )
        compositions = [
            tuple(map(self.composition, *columns))
            for columns in zip(best.indices.tolist(), best.values.tolist(), shares.tolist(), strict=True)
        ]
        return [Prediction(*parts) for parts in zip(compositions, states, objects, strict=True)]

    def composition(self, index: int, score: float, probability: float) -> Composition:
        state, obj = self.space.pairs[index]
        return Composition(state, obj, score, probability, bool(self.space.seen[index]))

    @staticmethod
    def marginal(probability: Tensor, index: Tensor, size: int) -> Tensor:
        """``B x P`` -> ``B x size``: probabilities summed over the pairs of each state (or object)."""
        zeros = torch.zeros(len(probability), size, dtype=probability.dtype, device=probability.device)
        return zeros.index_add_(1, index.to(probability.device), probability)

    @staticmethod
    def top(probability: Tensor, names: tuple[str, ...], k: int) -> list[tuple[Primitive, ...]]:
        """``B x S`` -> the best ``k`` of every image."""
        best = probability.topk(min(k, len(names)))
        return [
            tuple(Primitive(names[i], share) for share, i in zip(*columns, strict=True))
            for columns in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
