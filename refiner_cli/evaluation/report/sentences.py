"""The sentences of the report: what was chosen where, what is undefined, how confidence is to be read."""

from __future__ import annotations

from collections.abc import Iterator

from refiner_cli.core.models.calibration import ChosenOn
from refiner_cli.evaluation.metrics.breakdown import reliability
from refiner_cli.evaluation.result import Result

SOURCES: dict[ChosenOn, str] = {
    "": "the best closed-world AUC on validation, selected in training",
    "validation": "the best closed-world AUC on validation, selected in training",
    "cross-validation": "the best closed-world AUC in a cross-validation of the training images",
    "nothing": "as the training's settings say, which had no validation images",
}


def choice_sentences(result: Result) -> Iterator[str]:
    """A sentence for everything that was chosen or could be suspected to be."""
    if result.calibration is None:
        yield "Nothing was chosen: the scores are taken as they are."
    elif result.split == "val":
        yield "These are numbers of the validation split, on which the choices below were made."
    else:
        yield "Nothing was chosen on the test split."
    if weights := result.calibration:
        yield (
            f"Weights of the state and object evidence ({weights.state_weight:g} and "
            f"{weights.object_weight:g}) and the bias {weights.bias:.3g}: {SOURCES[weights.chosen_on]}, and "
            "stored with the model."
        )
    for name, world in result.worlds.items():
        if choice := world.feasibility:
            value = "threshold" if choice.mode == "mask" else "lambda"
            yield (
                f"Feasibility in the {name} world ({choice.mode}, {value} {choice.value:.4g}): the best of "
                f"{len(choice.candidates)} values on validation, AUC {choice.val_auc:.1f} there; words "
                f"compared by {choice.source}."
            )
    yield (
        "Exact protocol: every bias that changes a prediction is visited; a tie never counts as right."
        if result.protocol == "exact"
        else "Legacy protocol: the published sweep of about 20 biases, for comparison with printed numbers."
    )
    yield f"Intervals: {result.bootstrap_samples} bootstrap samples of the images, seed {result.seed}."


def undefined_sentences(result: Result) -> Iterator[str]:
    """A sentence for each world in which a metric is undefined."""
    for name, world in result.worlds.items():
        if text := world.metrics.undefined_text():
            yield f"{name} world: {text}"


def calibration_text(result: Result) -> str:
    errors = (
        f"{reliability(world.measured.summary, world.bias).error:.1f} points in the {name} world"
        for name, world in result.worlds.items()
    )
    bias = "at the model's bias" if result.calibration else "without a bias"
    return (
        "A model that is 70 % confident should be right 7 times in 10: the dashed line. The softmax runs "
        f"over all candidates {bias}. Mean distance from the line: {' and '.join(errors)}."
    )
