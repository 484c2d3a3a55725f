"""What is fitted after training, on images that were not learned from, for any method."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from refiner_cli.core.models.hubness import SOFTNESS

Level = Literal["pair", "object", "state"]
LEVELS: tuple[Level, ...] = get_args(Level)  # in the order in which a verdict tries them
ChosenOn = Literal["", "validation", "cross-validation", "nothing"]  # "": not known


@dataclass(frozen=True)
class Temperatures:
    """What logits are divided by before they become probabilities (Guo et al., ICML 2017).

    Those of states and objects divide the logarithms of their probabilities, which are sums over pairs.
    """

    pair: float = 1.0
    object: float = 1.0
    state: float = 1.0


@dataclass(frozen=True)
class Threshold:
    """From which probability on a verdict is given, and what validation shows of it."""

    probability: float | None  # None: no threshold keeps the promise
    coverage: float  # share of the images that get this verdict
    precision: float | None  # share of these that are right; None without any


@dataclass(frozen=True)
class Promise:
    """The thresholds that keep a precision: each counts for the images that those before it leave over."""

    precision: float
    pair: Threshold
    object: Threshold
    state: Threshold


@dataclass(frozen=True)
class Confidence:
    """How scores become probabilities in one world, and how far these can be relied on."""

    temperatures: Temperatures = Temperatures()
    promises: tuple[Promise, ...] = ()  # by rising precision

    def promise(self, precision: float) -> Promise | None:
        """The promise of at least a precision; None if it is higher than any."""
        return next((one for one in self.promises if one.precision >= precision - 1e-9), None)


@dataclass(frozen=True)
class Calibration:
    """How a trained model is used; the defaults are the plain model.

    The weights of the evidence apply in the closed world only.
    """

    state_weight: float = 0.0  # b_s, of the state evidence
    object_weight: float = 0.0  # b_o
    bias: float = 0.0  # added to the scores of unseen pairs, for the best closed-world harmonic mean
    hubness_strength: float = 0.0  # a; 0: no correction
    hubness_softness: float = SOFTNESS  # T
    wise_ft_alpha: float = 1.0  # weight of the learned word vectors (0: CLIP's, 1: learned)
    tta_shifts: int = 1  # shifted views averaged
    closed: Confidence = Confidence()
    open: Confidence = Confidence()
    chosen_on: ChosenOn = ""  # which images, none of which the model that was measured had learned from
    open_bias: float | None = None  # the bias of the open world; None: the same

    def bias_of(self, *, is_open: bool) -> float:
        """What is added to the scores of a label space's unseen pairs."""
        return self.bias if self.open_bias is None or not is_open else self.open_bias

    def confidence(self, *, is_open: bool) -> Confidence:
        """That of a label space: in the open world more pairs compete, by other scores."""
        return self.open if is_open else self.closed

    def to_json(self) -> dict[str, Any]:
        """Without ``open_bias`` where it is not known, so that fingerprints of earlier versions hold."""
        found = dataclasses.asdict(self)
        if self.open_bias is None:
            del found["open_bias"]
        return found


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """Rows of probabilities ``B x S`` whose logarithms are divided by a temperature; rows sum to 1."""
    if temperature == 1:
        return probabilities
    return (probabilities.log() / temperature).softmax(-1)
