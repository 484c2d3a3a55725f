"""What both Troika models share: three branches, and text drawn towards the patches of each image.

The text depends on the image, so scores cost ``B x P`` cross-attentions; they are computed in chunks of
pairs, which bounds the memory in the open world.

Shapes: ``B`` images, ``L`` image tokens, ``P`` texts, ``D`` joint width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from refiner_cli.core.models.base import ImageVectors, Model, PairIndices, Scores, TextBank
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.core.models.prompts import Prompts, Role
from refiner_cli.core.runtime.device import to_device
from refiner_cli.data.labels import LabelSpace

TEXTS_PER_BLOCK = 256  # texts at once
HEAD_WIDTH = 64  # of traction
INITIAL_AMOUNT = 0.1  # of the learned amount of traction


@dataclass(frozen=True)
class PatchedVectors(ImageVectors):
    """Image vectors and the patches they came from."""

    patches: Tensor = field(kw_only=True)  # B x L x D

    @staticmethod
    def average(parts: Sequence[ImageVectors]) -> PatchedVectors:
        """The text is drawn towards the patches of all parts."""
        whole = ImageVectors.average(parts)
        patches = torch.cat([part.patches for part in parts if isinstance(part, PatchedVectors)], 1)
        return PatchedVectors(whole.composition, whole.state, whole.object, patches=patches)


class TractionModel(Model):
    """A model whose text vectors are moved by the patches of the image that they are compared with."""

    scores_from_vectors = False  # traction reads the patches
    has_state_branch = has_object_branch = True
    prompts: Prompts

    def encode_pairs(self, space: LabelSpace) -> TextBank:
        return self.prompts.encode(
            space, chunk_size=self.memory.text_chunk_size, wise_ft_alpha=self.calibration.wise_ft_alpha
        )

    def score(self, images: ImageVectors, bank: TextBank) -> Scores:
        assert isinstance(images, PatchedVectors)  # noqa: S101 - encode_images makes them
        assert bank.states is not None  # noqa: S101 - all three are always aligned
        assert bank.objects is not None  # noqa: S101
        return Scores(
            self.attract("composition", images.composition, bank.pairs, images.patches),
            self.attract("state", images.state, bank.states, images.patches),
            self.attract("object", images.object, bank.objects, images.patches),
        )

    @abstractmethod
    def attract(self, role: Role, v: Tensor, text: Tensor, patches: Tensor) -> Tensor:
        """Logits ``B x P`` of image vectors ``B x D`` against text attracted to the image's patches."""

    def logits_in_blocks(self, attract: Callable[..., Tensor], v: Tensor, text: Tensor) -> Tensor:
        """Logits ``B x P``; ``attract`` takes ``C x D`` texts to unit vectors ``B x C x D``.

        With more than one block the backward pass computes each block again.
        """
        scale, shift = self.backbone.logit_scale, self.backbone.logit_bias

        def part(rows: Tensor) -> Tensor:
            attracted = attract(rows)
            with torch.autocast(v.device.type, enabled=False):  # similarities in float32
                return scale * torch.einsum("bd,bcd->bc", v.float(), attracted.float()) + shift

        blocks = text.split(TEXTS_PER_BLOCK)
        if len(blocks) == 1 or not torch.is_grad_enabled():
            return torch.cat([part(rows) for rows in blocks], 1)
        return torch.cat([checkpoint(part, rows, use_reentrant=False) for rows in blocks], 1)

    def combine(self, scores: Scores, space: PairIndices, calibration: Calibration | None = None) -> Tensor:
        """The published score, composition logit plus the product of state and object probabilities.

        Calibration may add weighted evidence in the closed world, as it does for every method.
        """
        assert scores.state is not None  # noqa: S101 - all three are always aligned
        assert scores.object is not None  # noqa: S101
        state, obj = (to_device(i, self.device) for i in (space.pair_state, space.pair_object))
        product = scores.state.softmax(-1)[:, state] * scores.object.softmax(-1)[:, obj]
        return super().combine(scores, space, calibration) + product
