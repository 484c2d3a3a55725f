"""Verdicts: what a rule says, and where it comes from."""

from __future__ import annotations

import pytest

from refiner_cli.core.models.calibration import Confidence, Level, Promise, Temperatures, Threshold
from refiner_cli.errors import UsageError
from refiner_cli.inference.verdicts import NOTHING_SURE, Guess, Verdict, VerdictRule

NEVER = Threshold(None, 0.0, None)


def promise(precision: float, pair: float | None, obj: float | None, state: float | None) -> Promise:
    values = (NEVER if one is None else Threshold(one, 0.5, precision) for one in (pair, obj, state))
    return Promise(precision, *values)


CONFIDENCE = Confidence(
    Temperatures(),
    (promise(0.5, 0.2, 0.3, 0.4), promise(0.9, None, 0.8, 0.7), promise(0.95, None, None, None)),
)


def best(pair: float, thing: float, state: float) -> dict[Level, Guess]:
    """The guesses on an image, with these probabilities."""
    return {"pair": Guess(pair, "ripe", "pear"), "object": Guess(thing, object="plum"),
            "state": Guess(state, state="raw")}  # fmt: skip


def test_the_first_that_is_sure_is_said() -> None:
    rule = VerdictRule(0.8, 0.7, None)
    assert rule.decide(best(0.8, 0.9, 1.0)) == Verdict("pair", 0.8, "ripe", "pear")
    assert rule.decide(best(0.79, 0.9, 1.0)) == Verdict("object", 0.7, None, "plum")
    assert rule.decide(best(0.1, 0.69, 1.0)) == NOTHING_SURE
    everywhere = VerdictRule.of_probability(0.6)
    assert everywhere.decide(best(0.1, 0.2, 0.6)) == Verdict("state", 0.6, "raw", None)


def test_a_precision_takes_the_promise_of_at_least_as_much() -> None:
    assert VerdictRule.of_precision(CONFIDENCE, 0.3) == VerdictRule(0.2, 0.3, 0.4)
    assert VerdictRule.of_precision(CONFIDENCE, 0.5) == VerdictRule(0.2, 0.3, 0.4)
    assert VerdictRule.of_precision(CONFIDENCE, 0.51) == VerdictRule(None, 0.8, 0.7)


@pytest.mark.parametrize("precision", [0.95, 0.99])
def test_a_precision_that_nothing_keeps_is_wrong_usage(precision: float) -> None:
    with pytest.raises(UsageError, match=r"no threshold kept a precision of .* keeps a precision of 0\.9"):
        VerdictRule.of_precision(CONFIDENCE, precision)


def test_a_model_without_thresholds_names_the_other_option() -> None:
    with pytest.raises(UsageError, match="use --min-probability instead"):
        VerdictRule.of_precision(Confidence(), 0.9)
