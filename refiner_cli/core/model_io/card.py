"""The model card: what a model recognises, how well, on what it rests, and under which licences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import open_clip
from pydantic import BaseModel, ConfigDict, Field

from refiner_cli._version import __version__
from refiner_cli.core.model_io.checkpoint import ModelInfo
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.calibration import Calibration, ChosenOn
from refiner_cli.core.towers import tiny
from refiner_cli.core.towers.architectures import split_language
from refiner_cli.core.towers.backbone import BackboneSpec
from refiner_cli.data.labels import LabelSpace
from refiner_cli.metric_names import HEADLINE_METRICS, format_metric

UNKNOWN_LICENCE = "not known to refiner"
# Licences that the publishers state for the weights, by what the tag of open_clip begins with.
TAG_LICENCES = {
    "openai": "MIT",
    "laion": "MIT",
    "datacomp": "MIT",
    "commonpool": "MIT",
    "merged2b": "MIT",
    "webli": "Apache 2.0",
    "metaclip": "CC BY-NC 4.0",
}

CARD = """---
library_name: refiner
pipeline_tag: zero-shot-image-classification
tags: [compositional-zero-shot-learning, clip, {kind}]
---
# {method} on {dataset}

Recognises {states} states of {objects} objects ({pairs} known pairs, {seen} of them seen in training).
Made by refiner {version} on the backbone {backbone} ({pretrained}).

```sh
refiner predict {place} PHOTOS
```

{figures}

{weights} Inference weights (state {b_s:g}, object {b_o:g}) and the seen-unseen
bias ({bias:.2f}, in the open world {open_bias:.2f}), hubness correction ({strength:g}), interpolation
with CLIP's words ({alpha:g}) and shifted views ({views}) were {chosen}.

| | |
|---|---|
| licence of the data | {data_licence} |
| licence of the backbone | {backbone_licence} |
| fingerprint of the data | {data_fingerprint} |
| fingerprint of the backbone | {backbone_fingerprint} |
{hashes}
"""


CHOSEN: dict[ChosenOn, str] = {
    "": "stored with the model, which does not say on which images they were chosen",
    "validation": "chosen on the validation split",
    "cross-validation": "chosen by cross-validation of the training images",
    "nothing": "not chosen on any image: they are the training's settings, or those of the plain model",
}


class WorldFigures(BaseModel):
    """The figures of one world, in percent; None: undefined."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    S: float | None
    U: float | None
    HM: float | None
    AUC: float | None
    intervals: dict[str, tuple[float, float] | None] = {}


class EvaluationFigures(BaseModel):
    """What a card takes from the object that ``refiner eval --json`` printed."""

    model_config = ConfigDict(frozen=True)

    format: Literal["refiner.eval/1"] = Field(alias="schema")
    dataset: str
    split: str
    worlds: dict[str, WorldFigures]
    calibration: dict[str, Any] | None = None  # of the model that was evaluated; None: of a score file


@dataclass(frozen=True)
class CardFacts:
    """What a card says besides what the model itself knows."""

    place: str = "."  # where the model lies: this folder, or hf-hub:OWNER/NAME
    data_licence: str = UNKNOWN_LICENCE
    evaluation: EvaluationFigures | None = None
    weights: str = ""  # a sentence on how the weights are stored
    kind: str = "safetensors"
    space: LabelSpace | None = None  # what an export recognises, if that is not what the model was made for
    hashes: Mapping[str, str] | None = None  # SHA-256 by file


def model_card(model: Model, info: ModelInfo, facts: CardFacts) -> str:
    """The card in Markdown."""
    spec, space, chosen = model.backbone.spec, facts.space or model.space, model.calibration
    how = CHOSEN["nothing" if chosen == Calibration() else chosen.chosen_on]
    rows = [f"| SHA-256 of {name} | {value} |" for name, value in (facts.hashes or {}).items()]
    return CARD.format(
        kind=facts.kind,
        method=info.method.capitalize(),
        dataset=info.dataset,
        states=len(space.states),
        objects=len(space.objects),
        pairs=len(space.pairs),
        seen=len(space.seen_pairs),
        version=__version__,
        backbone=spec.name,
        pretrained=spec.pretrained,
        place=facts.place,
        figures=figures_table(info, facts.evaluation),
        weights=facts.weights,
        b_s=chosen.state_weight,
        b_o=chosen.object_weight,
        bias=chosen.bias,
        open_bias=chosen.bias_of(is_open=True),
        strength=chosen.hubness_strength,
        alpha=chosen.wise_ft_alpha,
        views=chosen.tta_shifts,
        chosen=how,
        data_licence=facts.data_licence,
        backbone_licence=licence_of_backbone(spec),
        data_fingerprint=info.dataset_fingerprint or "none",
        backbone_fingerprint=model.backbone.fingerprint_by_name(),
        hashes="\n".join(rows),
    ).rstrip() + "\n"  # fmt: skip


def figures_table(info: ModelInfo, evaluation: EvaluationFigures | None) -> str:
    """The figures of an evaluation with 95 % intervals, else those of validation."""
    head = f"| %s | {' | '.join(HEADLINE_METRICS)} |\n{'|---' * (len(HEADLINE_METRICS) + 1)}|"
    if evaluation is None and not info.metrics:
        return "Nothing was measured on a validation split."
    if evaluation is None:
        values = " | ".join(format_metric(info.metrics.get(name)) for name in HEADLINE_METRICS)
        return f"{head % 'validation, closed world'}\n| after step {info.step} | {values} |"
    rows = [
        f"| {world} world | {' | '.join(with_interval(found, name) for name in HEADLINE_METRICS)} |"
        for world, found in evaluation.worlds.items()
    ]
    title = f"{evaluation.dataset}, {evaluation.split} split; in brackets: 95 % interval"
    return "\n".join([head % title, *rows])


def with_interval(found: WorldFigures, name: str) -> str:
    """A metric, and its interval where it has one."""
    span = found.intervals.get(name)
    value = format_metric(getattr(found, name))
    return f"{value} ({span[0]:.1f} to {span[1]:.1f})" if span else value


def licence_of_backbone(spec: BackboneSpec) -> str:
    """The licence of a backbone's weights, where it is known."""
    if spec.name == tiny.NAME:
        return "MIT, as refiner"
    name, tag = split_language(spec.name)[0], spec.pretrained.partition("=")[0]
    if not open_clip.get_pretrained_cfg(name, tag):  # a file, or weights of a repository
        return UNKNOWN_LICENCE
    return next((text for start, text in TAG_LICENCES.items() if tag.startswith(start)), UNKNOWN_LICENCE)
