"""The friendly level: a model and a vocabulary, images in, compositions out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from refiner_cli.core.models.base import ImageVectors, Model, TextBank
from refiner_cli.core.runtime.device import autocast
from refiner_cli.core.runtime.memory import OomRetry, is_out_of_memory
from refiner_cli.data.decode import to_rgb
from refiner_cli.data.images import Preprocess, decode
from refiner_cli.data.labels import IntArray, LabelSpace
from refiner_cli.errors import RefinerError, UsageError
from refiner_cli.inference.fingerprints import preprocessing_fingerprint, score_fingerprint
from refiner_cli.inference.ranking import RankedScores, ScoreRanking
from refiner_cli.inference.verdicts import Guess, Verdict, VerdictRule

BLOCK_PAIRS = 1 << 16  # pairs that are scored at once


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
class ObjectStates:
    """Every state of an object, best first; each probability is its own, so they do not sum to one."""

    object: str
    states: tuple[Primitive, ...]


@dataclass(frozen=True)
class Prediction:
    """What one image shows, best first."""

    compositions: tuple[Composition, ...]
    states: tuple[Primitive, ...]
    objects: tuple[Primitive, ...]
    object_states: tuple[ObjectStates, ...] = ()  # of the best objects, if they were asked for
    verdict: Verdict | None = None  # where the recogniser has a rule for it


@dataclass(frozen=True)
class PairBlock:
    """Consecutive pairs of a label space, as :meth:`Model.combine` needs them."""

    pair_state: IntArray  # P' int64, the index of each pair's state
    pair_object: IntArray  # P' int64
    is_open: bool  # of the complete label space


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
        self.rule: VerdictRule | None = None  # what is sure enough to be said; None: no verdicts
        self.preprocess = Preprocess(model.backbone.spec.preprocess)

    @cached_property
    def bank(self) -> TextBank:
        """The text vectors of all candidates, encoded once. Raises RefinerError if they do not fit."""
        try:
            return self.encode_texts()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise RefinerError(
            f"There is not enough memory on {self.model.device} for the texts of "
            f"{len(self.space.pairs):,} pairs.",
            hint="Use fewer states and objects, or list the pairs that matter with --pairs.",
        )

    @torch.no_grad()
    def encode_texts(self) -> TextBank:
        """Encode the candidates block by block: what one block takes beside its vectors is freed again."""
        bank, pairs = None, self.space.pairs
        for start in range(0, max(1, len(pairs)), BLOCK_PAIRS):
            rows = slice(start, start + BLOCK_PAIRS)
            block = self.space if len(pairs) <= BLOCK_PAIRS else replace(self.space, pairs=pairs[rows])
            with autocast(self.model.device, self.precision):
                part = self.model.text_bank(block)
            if len(pairs) <= BLOCK_PAIRS:
                return part
            if bank is None:
                vectors = part.pairs.new_empty(len(pairs), part.pairs.shape[1])
                offsets = None if part.offsets is None else part.offsets.new_empty(len(pairs))
                bank = replace(part, space=self.space, pairs=vectors, offsets=offsets)
            bank.pairs[rows] = part.pairs
            if bank.offsets is not None and part.offsets is not None:
                bank.offsets[rows] = part.offsets
        assert bank is not None  # noqa: S101 - there is a first block
        return bank

    @cached_property
    def bias(self) -> Tensor:
        """``P``: what is added to the scores of unseen pairs, as validation chose it."""
        seen = torch.from_numpy(self.space.seen).to(self.model.device)
        return torch.where(seen, 0.0, self.model.calibration.bias_of(is_open=self.space.is_open))

    @property
    def has_queries(self) -> bool:
        """Whether the model has concept queries, so that :meth:`query_attention` can show theirs."""
        return self.model.has_queries

    def query_attention(self, images: Tensor) -> Tensor:
        """What each concept query attends to in preprocessed images, ``B x K x L`` over the patches.

        Raises:
            UsageError: the model has no concept queries.
        """
        if not self.model.has_queries:
            raise UsageError("This model has no concept queries whose attention could be shown.")
        with autocast(self.model.device, self.precision):
            return self.model.query_attention(images.to(self.model.device))

    def fingerprint(self) -> dict[str, str | int]:
        """What decides the scores of an image: the model, the candidates, preprocessing, precision."""
        return {
            "model": score_fingerprint(self.model),
            "vocabulary": self.space.fingerprint(),
            "preprocessing": preprocessing_fingerprint(self.model),
            "precision": str(self.precision).removeprefix("torch."),
        }

    def predict(
        self, images: Iterable[Image.Image | Path | str], *, top_k: int = 5, batch: int = 32
    ) -> Iterator[Prediction]:
        """Yield the prediction of every image, in order: PIL images, or paths of image files.

        Images are taken and decoded one batch at a time, so that any number of them fits into memory.

        Raises:
            DatasetError: a file cannot be read; the message names it.
        """
        pixels = (self.preprocess(to_rgb(image) if isinstance(image, Image.Image) else decode(Path(image)))
                  for image in images)  # fmt: skip
        oom_retry = OomRetry(lambda _: None)
        while group := list(islice(pixels, batch)):
            yield from oom_retry.run(partial(self.predict_tensor, top_k=top_k), torch.stack(group))

    @torch.no_grad()
    def predict_tensor(self, images: Tensor, *, top_k: int = 5) -> list[Prediction]:
        """Recognise preprocessed images, ``B x 3 x H x W``. Raises ModelFileError for scores like NaN."""
        return self.predict_vectors(self.encode(images), top_k=top_k)

    @torch.no_grad()
    def encode(self, images: Tensor) -> ImageVectors:
        """The vectors of preprocessed images, ``B x 3 x H x W``: all that the scores need of them."""
        with autocast(self.model.device, self.precision):
            return self.model.encode_images_tta(images.to(self.model.device))

    @torch.no_grad()
    def predict_vectors(self, vectors: ImageVectors, *, top_k: int = 5) -> list[Prediction]:
        """Recognise images by their vectors, on the model's device. Raises ModelFileError as above."""
        ranked = self.rank(vectors, top_k)
        states, objects = (
            self.top(probability, names, top_k)
            for probability, names in (
                (ranked.states, self.space.states),
                (ranked.objects, self.space.objects),
            )
        )
        columns = (ranked.pairs.tolist(), ranked.scores.tolist(), ranked.probabilities.tolist())
        compositions = [tuple(map(self.composition, *image)) for image in zip(*columns, strict=True)]
        made = [Prediction(*parts) for parts in zip(compositions, states, objects, strict=True)]
        return [replace(one, verdict=self.verdict(one)) for one in made]

    def verdict(self, made: Prediction) -> Verdict | None:
        """What the rule says of a prediction; None without a rule."""
        if self.rule is None:
            return None
        pair, thing, state = made.compositions[0], made.objects[0], made.states[0]
        return self.rule.decide(
            {
                "pair": Guess(pair.probability, pair.state, pair.object),
                "object": Guess(thing.probability, object=thing.name),
                "state": Guess(state.probability, state=state.name),
            }
        )

    @torch.no_grad()
    def rank(self, vectors: ImageVectors, top_k: int) -> RankedScores:
        """Score images against all pairs, block by block of pairs. Raises ModelFileError as above."""
        with autocast(self.model.device, self.precision):
            return self._rank(vectors, top_k)

    def _rank(self, vectors: ImageVectors, top_k: int) -> RankedScores:
        bank, space, P = self.bank, self.space, len(self.space.pairs)
        ranking = ScoreRanking(
            len(vectors),
            (len(space.states), len(space.objects)),
            top_k,
            self.model.device,
            self.model.calibration.confidence(is_open=space.is_open).temperatures,
        )
        O = len(space.objects)  # noqa: E741 - as in method.md
        step = max(1, BLOCK_PAIRS // O) * O if space.is_grid else BLOCK_PAIRS
        for start in range(0, P, step):
            rows = slice(start, start + step)
            offsets = None if bank.offsets is None else bank.offsets[rows]
            part = replace(bank, pairs=bank.pairs[rows], offsets=offsets)
            scores = self.model.corrected_scores(vectors, part)
            block = PairBlock(space.pair_state[rows], space.pair_object[rows], space.is_open)
            total = self.model.combine(scores, block).add_(self.bias[rows])  # B x P'
            ranking.update(
                total, start, torch.from_numpy(block.pair_state), torch.from_numpy(block.pair_object),
                is_grid=space.is_grid,
            )  # fmt: skip
        return ranking.result()

    def composition(self, index: int, score: float, probability: float) -> Composition:
        state, obj = self.space.pairs[index]
        return Composition(state, obj, score, probability, bool(self.space.seen[index]))

    @staticmethod
    def top(probability: Tensor, names: tuple[str, ...], k: int) -> list[tuple[Primitive, ...]]:
        """``B x S`` -> the best ``k`` of every image."""
        best = probability.topk(min(k, len(names)))
        return [
            tuple(Primitive(names[i], share) for share, i in zip(*columns, strict=True))
            for columns in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
