"""Which validated step is the best: compared by the first criterion that validation can measure.

A metric without images of its side is undefined, which is not 0: without unseen (or seen) images there
is no AUC and no HM. Where none is defined, the training loss decides. With ``train.selection=loss`` the
validation loss decides alone, as for Troika on MIT-States. Ties go to the later step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

Criterion = Literal["AUC", "HM", "S", "U", "loss", "validation loss"]
IN_ORDER: tuple[Criterion, ...] = ("AUC", "HM", "S", "U")
MEANING = {
    "AUC": "the area under the seen-unseen curve (AUC)",
    "HM": "the best harmonic mean (HM)",
    "S": "the accuracy on seen pairs (S)",
    "U": "the accuracy on unseen pairs (U)",
    "loss": "the training loss",
    "validation loss": "the validation loss",
}


def selection_criterion(val: Mapping[str, Any]) -> Criterion:
    """The first criterion that is defined.

    Args:
        val: metrics as ``Metrics.to_json`` gives them, None where they are undefined.
    """
    return next((name for name in IN_ORDER if val.get(name) is not None), "loss")


def best_record(
    checkpoint: str,
    step: int,
    val: Mapping[str, Any],
    loss: float | None = None,
    *,
    validation_loss: float | None = None,
) -> dict[str, Any]:
    """The content of best.json.

    Args:
        checkpoint: name of the folder.
        val: metrics of the validation after ``step``.
        loss: mean training loss since the validation before; None before the first step.
        validation_loss: the criterion, where it is given.
    """
    if validation_loss is not None:
        return {"checkpoint": checkpoint, "step": step, "criterion": "validation loss",
                "value": validation_loss, "val": dict(val)}  # fmt: skip
    criterion = selection_criterion(val)
    value = loss if criterion == "loss" else float(val[criterion])
    return {"checkpoint": checkpoint, "step": step, "criterion": criterion, "value": value, "val": dict(val)}


def is_better(new: Mapping[str, Any], old: Mapping[str, Any] | None) -> bool:
    """Whether a record takes the place of an older one; so it does where both are equal."""
    if old is None or new["criterion"] != old["criterion"]:
        return True
    sign = -1 if new["criterion"].endswith("loss") else 1
    values = [-math.inf if record["value"] is None else sign * record["value"] for record in (new, old)]
    return bool(values[0] >= values[1])
