"""The sentences of the report: what was chosen where, what is undefined, how confidence is to be read."""

from __future__ import annotations

from collections.abc import Iterator

from refiner_cli.core.models.calibration import Calibration, ChosenOn, Temperatures
from refiner_cli.evaluation.metrics.breakdown import reliability
from refiner_cli.evaluation.result import Result, WorldResult

SOURCES: dict[ChosenOn, str] = {
    "validation": "on validation",
    "cross-validation": "in a cross-validation of the training images",
}
NOT_CHOSEN: dict[ChosenOn, str] = {
    "": "stored with the model, which does not say on which images they were chosen",
    "nothing": "the first values that the training's settings name and no bias, as there were no images to "
    "choose on",
}


def choice_sentences(result: Result) -> Iterator[str]:
    """A sentence for everything that was chosen or could be suspected to be."""
    chosen = result.calibration
    if chosen is None:
        yield "Nothing was chosen: the scores are taken as they are."
    elif result.split != "val":
        yield f"Nothing was chosen on the {result.split} split."
    elif chosen.chosen_on == "validation" or any(world.feasibility for world in result.worlds.values()):
        yield "These are numbers of the validation split, on which choices below were made."
    else:
        yield "These are numbers of the validation split."
    if chosen:
        yield from calibration_sentences(chosen)
    for name, world in result.worlds.items():
        if choice := world.feasibility:
            value = "threshold" if choice.mode == "mask" else "lambda"
            yield (
                f"Feasibility in the {name} world ({choice.mode}, {value} {choice.value:.4g}): the best of "
                f"{len(choice.candidates)} values on validation, AUC {choice.val_auc:.1f} there; words "
                f"compared by {choice.source}. The bias of unseen pairs ({choice.bias:.3g}): that of the "
                "best harmonic mean there."
            )
    yield (
        "Exact protocol: every bias that changes a prediction is visited; a tie never counts as right."
        if result.protocol == "exact"
        else "Legacy protocol: the published sweep of about 20 biases, for comparison with printed numbers."
    )
    yield f"Intervals: {result.bootstrap_samples} bootstrap samples of the images, seed {result.seed}."


def calibration_sentences(chosen: Calibration) -> Iterator[str]:
    """How the stored settings of a model were chosen, as :mod:`~refiner_cli.training.calibrate` does it."""
    composition = (
        f"shifted views ({chosen.tta_shifts}), weight of the learned words ({chosen.wise_ft_alpha:g}) and "
        f"strength of the hubness correction ({chosen.hubness_strength:g})"
    )
    weights = (
        f"weights of the state and object evidence in the closed world ({chosen.state_weight:g} and "
        f"{chosen.object_weight:g})"
    )
    wide = "" if chosen.open_bias is None else f", in the open world {chosen.open_bias:.3g}"
    bias = f"bias of unseen pairs ({chosen.bias:.3g}{wide})"
    where = SOURCES.get(chosen.chosen_on)
    if where is None:
        yield capital(f"{composition}, {weights}, {bias}: {NOT_CHOSEN[chosen.chosen_on]}.")
        return
    yield capital(
        f"{composition}: of the values that were tried, those with the largest sure gain over the first ones "
        f"{where}, by the mean of closed-world and open-world AUC (accuracy where that is undefined)."
    )
    yield capital(f"{weights}: by the same rule {where}, by the closed-world AUC.")
    measured = "closed-world harmonic mean" if chosen.open_bias is None else "harmonic mean of each world"
    yield capital(f"{bias}: that of the best {measured} {where}, 0 where that is undefined.")
    if (chosen.closed.temperatures, chosen.open.temperatures) != (Temperatures(), Temperatures()):
        yield f"Temperatures of the probabilities: by maximum likelihood {where}."


def capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def undefined_sentences(result: Result) -> Iterator[str]:
    """A sentence for each world in which a metric is undefined."""
    for name, world in result.worlds.items():
        if text := world.metrics.undefined_text():
            yield f"{name} world: {text}"


def calibration_text(result: Result) -> str:
    errors = (f"{distance_text(world)} in the {name} world" for name, world in result.worlds.items())
    bias = "at the model's bias" if result.calibration else "without a bias"
    return (
        "A model that is 70 % confident should be right 7 times in 10: the dashed line. The softmax runs "
        f"over all candidates {bias}. Mean distance from the line: {'; '.join(errors)}."
    )


def distance_text(world: WorldResult) -> str:
    """The mean distance from the line, of each of a world's lines in the charts."""
    if not world.measured.confidence:
        return f"{reliability(world.measured.summary, world.bias).error:.1f} points"
    before, after = world.measured.confidence.errors["pair"]
    return f"{before:.1f} points before temperature and {after:.1f} after it"
