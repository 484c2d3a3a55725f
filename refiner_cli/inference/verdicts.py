"""Verdicts: of a prediction, what is sure enough to be said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from refiner_cli.core.models.calibration import LEVELS, Confidence, Level
from refiner_cli.errors import UsageError


@dataclass(frozen=True)
class Verdict:
    """What is said of an image, and the threshold that its probability reached."""

    level: Literal["pair", "object", "state", "unknown"]
    threshold: float | None = None  # None: unknown
    state: str | None = None  # None: not sure
    object: str | None = None


NOTHING_SURE = Verdict("unknown")


@dataclass(frozen=True)
class Guess:
    """The best pair of an image, or its best object or state alone."""

    probability: float
    state: str | None = None
    object: str | None = None


@dataclass(frozen=True)
class VerdictRule:
    """From which probability on the best pair is said, else the best object, else the best state.

    None: never.
    """

    pair: float | None
    object: float | None
    state: float | None

    @classmethod
    def of_probability(cls, probability: float) -> VerdictRule:
        """The same threshold for all."""
        return cls(probability, probability, probability)

    @classmethod
    def of_precision(cls, confidence: Confidence, precision: float) -> VerdictRule:
        """The thresholds with which a share ``precision`` of the verdicts was right on validation.

        Raises:
            UsageError: the model has no thresholds, or none that keep so high a precision.
        """
        if not confidence.promises:
            raise UsageError(
                "The model has no thresholds, which validation labels would give: "
                "use --min-probability instead of --min-precision."
            )
        promise = confidence.promise(precision)
        never = rule = cls(None, None, None)
        if promise:
            rule = cls(promise.pair.probability, promise.object.probability, promise.state.probability)
        if rule == never:
            highest = max(
                (one.precision for one in confidence.promises if any(
                    getattr(one, level).probability is not None for level in LEVELS)),
                default=None,
            )  # fmt: skip
            reached = "no precision" if highest is None else f"a precision of {highest:g} at most"
            raise UsageError(
                f"On validation no threshold kept a precision of {precision:g}.",
                hint=f"The model keeps {reached}; --min-probability needs no promise.",
            )
        return rule

    def decide(self, best: Mapping[Level, Guess]) -> Verdict:
        """The verdict on an image, from its best pair, object and state."""
        for level in LEVELS:
            threshold: float | None = getattr(self, level)
            if threshold is not None and best[level].probability >= threshold:
                return Verdict(level, threshold, best[level].state, best[level].object)
        return NOTHING_SURE

    def __str__(self) -> str:
        parts = [(level, getattr(self, level)) for level in LEVELS]
        return ", ".join(f"{level} {'never' if value is None else f'{value:.4f}'}" for level, value in parts)
