"""The interface that Refiner and every baseline implement.

Train, eval, predict and export know nothing else. Shapes: ``B`` images, ``S`` states, ``O``
objects, ``P`` pairs, ``D`` joint width.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.config import ModelConfig, TrainConfig
from refiner_cli.core.models.hubness import Hubs
from refiner_cli.core.models.shifted_views import on_grids
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.data.labels import LabelSpace


@dataclass(frozen=True)
class ImageVectors:
    """Unit vectors of a batch, each ``B x D`` float32, one a role."""

    composition: Tensor
    state: Tensor
    object: Tensor

    def __len__(self) -> int:
        return len(self.composition)

    def __getitem__(self, rows: slice) -> ImageVectors:
        return ImageVectors(self.composition[rows], self.state[rows], self.object[rows])

    @staticmethod
    def merged(parts: Sequence[ImageVectors]) -> ImageVectors:
        """The vectors of the same images, seen in several ways, added."""
        composition, state, obj = (
            F.normalize(torch.stack([getattr(part, role) for part in parts]).sum(0), dim=-1)
            for role in ("composition", "state", "object")
        )
        return ImageVectors(composition, state, obj)


@dataclass(frozen=True)
class TextBank:
    """Unit vectors of a label space, float32. They do not depend on any image."""

    space: LabelSpace
    pairs: Tensor  # P x D
    states: Tensor | None  # S x D
    objects: Tensor | None  # O x D
    levels: Tensor | None = None  # P, what is taken from each pair's logit; None: nothing


@dataclass(frozen=True)
class Scores:
    """Logits of a batch against a text bank, float32; None where a model has no such branch."""

    composition: Tensor  # B x P
    state: Tensor | None  # B x S
    object: Tensor | None  # B x O


@dataclass(frozen=True)
class Calibration:
    """What validation chose, stored with the model. The weights count in the closed world alone."""

    state_weight: float = 0.0  # b_s
    object_weight: float = 0.0  # b_o
    bias: float = 0.0  # what to add to unseen pairs for the best harmonic mean

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Model(nn.Module, ABC):
    """A recogniser of compositions on a frozen backbone."""

    def __init__(self, backbone: Backbone, config: ModelConfig, space: LabelSpace) -> None:
        super().__init__()
        self.backbone = backbone
        self.clip: Any = backbone.clip  # registered, so that .to(device) moves it
        self.config = config
        self.space = space  # what it was made for
        self.calibration = Calibration()
        self.hubs: Hubs | None = None
        self.recompute = False  # keep no activations inside visual blocks, compute them again

    has_state_branch = False
    has_object_branch = False

    @property
    def device(self) -> torch.device:
        return next(self.clip.parameters()).device

    def train(self, mode: bool = True) -> Model:  # noqa: FBT001, FBT002 - nn.Module's signature
        """Switch to training or evaluation; the frozen towers always stay in evaluation."""
        super().train(mode)
        self.clip.eval()
        return self

    def learned(self) -> dict[str, nn.Parameter]:
        """Everything that training changes, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def stored(self) -> dict[str, Tensor]:
        """What a file of the model holds, by name: what was learned, and what was measured afterwards."""
        stored: dict[str, Tensor] = dict(self.learned())
        return stored if self.hubs is None else stored | {"hubs.centres": self.hubs.centres}

    @abstractmethod
    def encode_images(self, images: Tensor) -> ImageVectors:
        """Preprocessed images ``B x 3 x H x W`` -> vectors."""

    def read(self, images: Tensor) -> ImageVectors:
        """Outside training: the vectors of preprocessed images, read on ``model.grids`` patch grids."""
        moved = on_grids(images, self.backbone.visual.patch, self.config.grids)
        parts = [self.encode_images(view) for view in moved]
        return parts[0] if len(parts) == 1 else parts[0].merged(parts)

    @abstractmethod
    def encode_pairs(self, space: LabelSpace) -> TextBank:
        """Text vectors of every candidate."""

    def score(self, images: ImageVectors, bank: TextBank) -> Scores:
        """Temperature times cosine similarity, in float32 whatever the precision outside."""
        scale, shift = self.backbone.logit_scale, self.backbone.logit_bias
        with torch.autocast(images.composition.device.type, enabled=False):
            composition = scale * images.composition @ bank.pairs.T
            if bank.levels is not None:
                composition = composition - bank.levels
            return Scores(
                composition + shift if shift else composition,
                None if bank.states is None else scale * images.state @ bank.states.T,
                None if bank.objects is None else scale * images.object @ bank.objects.T,
            )

    def combine(self, scores: Scores, space: LabelSpace, calibration: Calibration | None = None) -> Tensor:
        """The final scores ``B x P``: composition logits and weighted evidence for state and object.

        Where every state competes with every object, the composition decides alone: the evidence does not
        know what goes together, and lifts pairs that exist nowhere.
        """
        chosen = calibration or self.calibration
        total = scores.composition
        if space.is_open:
            return total
        for logits, weight, index in (
            (scores.state, chosen.state_weight, space.pair_state),
            (scores.object, chosen.object_weight, space.pair_object),
        ):
            if logits is not None and weight:
                columns = torch.from_numpy(index).to(logits.device)
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
                target = torch.from_numpy(index).to(truth.device)[truth]
                loss = loss + weight * F.cross_entropy(logits, target, label_smoothing=smoothing)
        return loss
