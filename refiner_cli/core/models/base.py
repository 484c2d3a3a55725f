"""The interface that Refiner and every baseline implement.

Training, evaluation, prediction and export know nothing else. A method is one file with a subclass of
:class:`Model` and its own section of the configuration (:class:`~refiner_cli.config.MethodConfig`).

Shapes: ``B`` images, ``S`` states, ``O`` objects, ``P`` pairs, ``D`` joint embedding width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.config import MethodConfig, TrainConfig
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.core.models.hubness import HubnessCorrection
from refiner_cli.core.models.shifted_views import SHIFTS, Shift, shifted_view
from refiner_cli.core.runtime.device import to_device
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.core.towers.text import DEFAULT_CHUNK_SIZE
from refiner_cli.data.labels import IntArray, LabelSpace


@dataclass(frozen=True)
class ImageVectors:
    """Unit vectors of a batch of images, one per role, each ``B x D`` float32."""

    composition: Tensor
    state: Tensor
    object: Tensor
    branches: tuple[ImageVectors, ...] = ()  # parts of these vectors that training aligns one by one

    def __len__(self) -> int:
        return len(self.composition)

    def __getitem__(self, rows: slice) -> ImageVectors:
        return ImageVectors(self.composition[rows], self.state[rows], self.object[rows])

    def take(self, rows: Tensor) -> Self:
        """Some of the images, by their places ``B'`` int64."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        chosen = {name: value[rows.to(value.device)] for name, value in tensors.items()}
        return replace(self, **chosen, branches=())

    @staticmethod
    def average(parts: Sequence[ImageVectors]) -> ImageVectors:
        """The normalised sum of several vectors of the same images."""
        composition, state, obj = (
            F.normalize(torch.stack([getattr(part, role) for part in parts]).sum(0), dim=-1)
            for role in ("composition", "state", "object")
        )
        return ImageVectors(composition, state, obj)


@dataclass(frozen=True)
class TextBank:
    """Unit text vectors of a label space, float32. They do not depend on any image."""

    space: LabelSpace
    pairs: Tensor  # P x D
    states: Tensor | None  # S x D
    objects: Tensor | None  # O x D
    offsets: Tensor | None = None  # P, subtracted from the pairs' logits; None: nothing


@runtime_checkable
class LabelTables(Protocol):
    """A part of a model with learned tensors that have one row per state or per object."""

    def label_tables(self) -> dict[str, Literal["state", "object"]]:
        """The names of these tensors within the part, and whose rows they hold."""
        ...


class PairIndices(Protocol):
    """Which state and object each scored pair has: a :class:`LabelSpace`, or a block of its pairs."""

    @property
    def pair_state(self) -> IntArray:
        """P int64: the index of each pair's state."""
        ...

    @property
    def pair_object(self) -> IntArray:
        """P int64: the index of each pair's object."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether every state competes with every object."""
        ...


@dataclass(frozen=True)
class Scores:
    """Logits of a batch against a text bank, float32; None where a model has no such branch."""

    composition: Tensor  # B x P
    state: Tensor | None  # B x S
    object: Tensor | None  # B x O
    branches: tuple[Scores, ...] = ()  # in training, the logits of each branch of the image vectors

    def corrected(self, offsets: Tensor | None) -> Scores:
        """With the offsets ``P`` of a hubness correction subtracted from the composition logits."""
        return self if offsets is None else replace(self, composition=self.composition - offsets)


@dataclass(frozen=True)
class MemoryOptions:
    """How a model trades computation for memory. Results change in their last digits at most."""

    text_chunk_size: int = DEFAULT_CHUNK_SIZE  # prompts encoded at once
    gradient_checkpointing: bool = False  # recompute activations inside visual blocks


class Model(nn.Module, ABC):
    """A recogniser of compositions on a frozen backbone.

    Args:
        backbone: the frozen towers.
        config: the method's own section, an instance of ``Config``.
        space: the states, objects and pairs that it is made for.
    """

    Config: ClassVar[type[MethodConfig]]  # the method's section of the configuration
    config: MethodConfig
    has_state_branch = False  # whether Scores.state is weighted in combine()
    has_object_branch = False
    frozen_image_side = False  # whether encode_images is the backbone alone, and takes its vectors, too
    learns_words = False  # whether encode_pairs() interpolates trained word vectors with CLIP's
    scores_from_vectors = True  # whether ImageVectors hold all that score() needs of an image

    def __init__(self, backbone: Backbone, config: MethodConfig, space: LabelSpace) -> None:
        super().__init__()
        self.backbone = backbone
        self.clip: Any = backbone.clip  # registered, so that .to(device) moves it
        self.config = config
        self.space = space
        self.calibration = Calibration()
        self.hubness: HubnessCorrection | None = None  # fitted by calibration, if it has a strength
        self.memory = MemoryOptions()

    @classmethod
    def build(cls, backbone: Backbone, config: Any, space: LabelSpace) -> Self:
        """The model at its initial values."""
        return cls(backbone, config, space)

    @property
    def device(self) -> torch.device:
        return next(self.clip.parameters()).device

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - nn.Module's signature
        """Switch to training or evaluation; the frozen towers always stay in evaluation."""
        super().train(mode)
        self.clip.eval()
        return self

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Everything that training changes, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def saved_tensors(self) -> dict[str, Tensor]:
        """The tensors that a file of the model holds, by name: trained ones, and the numbers beside them.

        These are the persistent buffers: running statistics of batch normalisation, centres of the hubness
        correction.
        """
        state = self.state_dict(keep_vars=True)
        beside = {
            name: value
            for name, value in state.items()
            if not (isinstance(value, nn.Parameter) or name.startswith("clip.")) and value.is_floating_point()
        }
        return {**self.trainable_parameters(), **beside}

    def label_tables(self) -> dict[str, Literal["state", "object"]]:
        """The saved tensors with one row per state or object of ``space``, by name."""
        return {
            f"{part}.{name}": role
            for part, module in self.named_modules()
            if part and isinstance(module, LabelTables)
            for name, role in module.label_tables().items()
        }

    def forward(self, images: Tensor, bank: TextBank) -> Scores:
        """Preprocessed images ``B x 3 x H x W`` against all texts of a bank."""
        return self.score(self.encode_images(images), bank)

    @abstractmethod
    def encode_images(self, images: Tensor) -> ImageVectors:
        """Preprocessed images ``B x 3 x H x W`` -> vectors."""

    def encode_images_tta(self, images: Tensor) -> ImageVectors:
        """As :meth:`encode_images`, averaged over the calibration's shifted views; not for training."""
        count = self.calibration.tta_shifts
        return self.encode_views(images, [count])[count]

    def encode_views(self, images: Tensor, counts: Sequence[int]) -> dict[int, ImageVectors]:
        """The same for several numbers of views; a view that they share is encoded once."""
        if images.ndim == 2:  # vectors, see frozen_image_side; their views were averaged before
            return dict.fromkeys(counts, self.encode_images(images))
        patch = self.backbone.visual.patch_size
        by_shift: dict[Shift, ImageVectors] = {}
        found: dict[int, ImageVectors] = {}
        for count in counts:
            for shift in SHIFTS[count]:
                if shift not in by_shift:
                    by_shift[shift] = self.encode_images(shifted_view(images, patch, shift))
            views = [by_shift[shift] for shift in SHIFTS[count]]
            found[count] = views[0] if count == 1 else views[0].average(views)
        return found

    @abstractmethod
    def encode_pairs(self, space: LabelSpace) -> TextBank:
        """Text vectors of every candidate."""

    def text_bank(self, space: LabelSpace) -> TextBank:
        """As :meth:`encode_pairs`, with the calibration's hubness offsets; not for training."""
        return self.with_offsets(self.encode_pairs(space), self.calibration)

    def with_offsets(self, bank: TextBank, calibration: Calibration) -> TextBank:
        """A bank with the offsets of a calibration's hubness correction, if it has one."""
        if self.hubness is None or not calibration.hubness_strength:
            return replace(bank, offsets=None)
        offsets = self.hubness(
            bank.pairs,
            self.backbone.logit_scale,
            strength=calibration.hubness_strength,
            softness=calibration.hubness_softness,
        )
        return replace(bank, offsets=offsets)

    @property
    def has_queries(self) -> bool:
        """Whether the model has queries whose attention can be shown."""
        return False

    def query_attention(self, images: Tensor) -> Tensor:  # noqa: ARG002 - for methods that have queries
        """What the queries attend to, ``B x K x L`` over the patches. Raises ValueError without queries."""
        raise ValueError("This model has no queries.")

    def score(self, images: ImageVectors, bank: TextBank) -> Scores:
        """Temperature times cosine similarity, in float32 whatever the precision outside."""
        scale, shift = self.backbone.logit_scale, self.backbone.logit_bias
        with torch.autocast(images.composition.device.type, enabled=False):
            composition = scale * images.composition @ bank.pairs.T  # B x P
            return Scores(
                composition + shift if shift else composition,
                None if bank.states is None else scale * images.state @ bank.states.T,
                None if bank.objects is None else scale * images.object @ bank.objects.T,
                tuple(self.score(branch, bank) for branch in images.branches if self.training),
            )

    def corrected_scores(self, images: ImageVectors, bank: TextBank) -> Scores:
        """As :meth:`score`, with the bank's offsets subtracted."""
        return self.score(images, bank).corrected(bank.offsets)

    def combine(self, scores: Scores, space: PairIndices, calibration: Calibration | None = None) -> Tensor:
        """The final scores ``B x P``: composition logits and weighted evidence for state and object.

        Where every state competes with every object, the composition decides alone: the evidence does not
        know which states and objects go together, and raises pairs that do not exist.
        """
        weights = calibration or self.calibration
        total = scores.composition
        if space.is_open:
            return total
        for logits, weight, index in (
            (scores.state, weights.state_weight, space.pair_state),
            (scores.object, weights.object_weight, space.pair_object),
        ):
            if logits is not None and weight:
                columns = to_device(index, logits.device)
                # Weighted before it is spread over the pairs: in the open world B x P is large.
                total = (weight * logits.log_softmax(-1)).index_select(1, columns).add_(total)
        return total

    def loss(self, scores: Scores, truth: Tensor, space: LabelSpace, train: TrainConfig) -> Tensor:
        """The training loss; ``truth`` (``B`` int64) indexes the pairs of ``space``."""
        smoothing = train.label_smoothing
        loss = F.cross_entropy(scores.composition, truth, label_smoothing=smoothing)
        for logits, weight, index in (
            (scores.state, train.state_weight, space.pair_state),
            (scores.object, train.object_weight, space.pair_object),
        ):
            if logits is not None:
                target = to_device(index, truth.device)[truth]
                loss = loss + weight * F.cross_entropy(logits, target, label_smoothing=smoothing)
        return loss
