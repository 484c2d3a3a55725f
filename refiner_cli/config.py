"""The configuration of a run: one validated schema.

The section ``[model]`` belongs to the method: each method brings its own (:class:`MethodConfig`). Where
values come from is the matter of :mod:`refiner_cli.settings`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)

from refiner_cli.errors import ConfigError
from refiner_cli.plugins import method_class, method_names

SECTIONS = ("model", "train", "calibration")
EXCLUSIVE_KEYS = (("train.eval_every", "train.val_per_epoch"),)  # one of each may differ from its default


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MethodConfig(Section):
    """The base of a method's own section."""


class TrainConfig(Section):
    """The training loop."""

    epochs: int = Field(15, ge=1, description="passes over the training images")
    max_steps: int = Field(0, ge=0, description="stop after this many steps; 0: after the epochs")
    batch_size: int = Field(64, ge=1, description="images per optimizer step")
    optimizer: Literal["adamw", "adam"] = Field(
        "adamw",
        description="adamw: weight decay apart from the gradient, on matrices only; "
        "adam: added to the gradient of everything learned, as published CZSL methods have it",
    )
    lr: float = Field(5e-4, gt=0, le=1e4, description="learning rate after warm-up")
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="how the rate falls: to zero along a cosine, in steps, or not at all"
    )
    step_epochs: int = Field(5, ge=1, description="epochs between the steps of schedule step")
    step_factor: float = Field(0.5, gt=0, le=1, description="factor of each of these steps")
    weight_decay: float = Field(1e-5, ge=0, description="weight decay of the optimizer")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the rate rises")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are clipped to this norm; 0: they are not")
    state_weight: float = Field(0.5, ge=0, description="w_s, weight of the state alignment in the loss")
    object_weight: float = Field(0.5, ge=0, description="w_o, weight of the object alignment in the loss")
    concept_weight: float = Field(
        0.5, ge=0, description="w_c, weight in the loss of regions and class token, each aligned on its own"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of every cross-entropy")
    augment: Literal["published", "affine", "none"] = Field(
        "published",
        description="published: flip, perspective, rotation; "
        "affine: flip, rotation, scale, translation with mirrored edges; none",
    )
    text_chunk_size: int = Field(0, ge=0, description="prompts encoded at once; 0: as many as fit in memory")
    micro_batch: int = Field(0, ge=0, description="images computed at once; 0: as many as fit in memory")
    memory_gb: float = Field(
        0, ge=0, description="memory of the device in GB to plan for, weights included; 0: what is free of it"
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="recompute activations inside visual blocks instead of keeping them; "
        "auto: where few images fit otherwise, or not all with batch normalisation",
    )
    cached_views: int = Field(
        0, ge=0, description="augmented views per image whose frozen activations are kept on disk; 0: none"
    )
    num_workers: int = Field(-1, ge=-1, description="image-decoding processes; -1: chosen automatically")
    checkpoint_minutes: float = Field(
        10.0, ge=0, description="minutes between checkpoints within an epoch; 0: after every step"
    )
    selection: Literal["auc", "loss"] = Field(
        "auc",
        description="what the best checkpoint is selected by on validation: closed-world AUC (or what stands "
        "for it where it is undefined), or the loss",
    )
    eval_every: int = Field(1, ge=1, description="epochs between validations; the last epoch always has one")
    val_per_epoch: int = Field(
        1, ge=1, description="validations within each epoch, evenly spaced; above 1 needs eval_every=1"
    )
    max_nonfinite_steps: int = Field(
        10, ge=0, description="consecutive steps with a NaN or infinity before training stops"
    )
    compile: bool = Field(
        default=False, description="compile image encoding with torch.compile; on CUDA GPUs only"
    )
    deterministic: bool = Field(
        default=False, description="use only kernels that repeat their results bit by bit; slower"
    )

    @model_validator(mode="after")
    def _one_rhythm_of_validation(self) -> TrainConfig:
        if self.eval_every > 1 and self.val_per_epoch > 1:
            raise ValueError("train.val_per_epoch above 1 needs train.eval_every=1")
        return self


def as_list(value: Any) -> Any:
    """A single value as a list of one."""
    return value if isinstance(value, list | tuple) else (value,)


Candidates = BeforeValidator(as_list)
Weight = Annotated[float, Field(ge=0, le=1000)]


class CalibrationConfig(Section):
    """What calibration may try after training, on validation; the first value of a list is the plainest."""

    tta_shifts: Annotated[tuple[Literal[1, 2, 4], ...], Candidates] = Field(
        (1, 2, 4), min_length=1, description="shifted views averaged; each costs a forward pass"
    )
    wise_ft_alpha: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Candidates] = Field(
        (1.0, 0.5, 0.25),
        min_length=1,
        description="weight of the learned state and object vectors (0: CLIP's, 1: learned)",
    )
    hubness_strength: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Candidates] = Field(
        (0.0, 0.5, 1.0),
        min_length=1,
        description="share of a pair's typical similarity to training images that is subtracted",
    )
    hubness_softness: Annotated[tuple[Annotated[float, Field(ge=1e-3, le=100)], ...], Candidates] = Field(
        (0.25, 1.0), min_length=1, description="how much the most similar images count in that typical value"
    )
    state_weight: Annotated[tuple[Weight, ...], Candidates] = Field(
        (0.0, 0.25, 0.5, 1.0, 2.0, 4.0), min_length=1, description="b_s, weight of the state evidence"
    )
    object_weight: Annotated[tuple[Weight, ...], Candidates] = Field(
        (0.0, 0.25, 0.5, 1.0, 2.0, 4.0), min_length=1, description="b_o, weight of the object evidence"
    )
    temperature: bool = Field(
        default=True, description="scale probabilities to be as often right as they say"
    )
    folds: int = Field(
        0,
        ge=0,
        le=20,
        description="without validation images: parts of a cross-validation, a training each; 0: "
        "nothing is chosen",
    )

    @field_validator("folds")
    @classmethod
    def _several_parts(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("a cross-validation needs two parts or more; 0 does without")
        return folds


class Config(Section):
    """Everything that determines what a run computes."""

    method: str = Field(
        "refiner", description="refiner, clip, coop, csp, troika, troika-shared, or an installed plugin"
    )
    backbone: str = Field("ViT-L-14", min_length=1, description="an open_clip ViT model, or tiny")
    pretrained: str = Field("openai", description="an open_clip tag, a weights file, TAG=FILE, or none")
    init: str = Field("", description="a trained model to start from: a run, an export or hf-hub:OWNER/NAME")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="determines every random choice")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="precision of the forward pass"
    )
    model: SerializeAsAny[MethodConfig] = Field(
        default_factory=dict, validate_default=True, description="the method's own section"
    )
    train: TrainConfig = TrainConfig()
    calibration: CalibrationConfig = CalibrationConfig()

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        if name not in method_names():
            raise ValueError(f"the methods are {', '.join(method_names())}")
        return name

    @field_validator("model", mode="before")
    @classmethod
    def _section_of_the_method(cls, value: Any, info: ValidationInfo) -> Any:
        if "method" not in info.data:  # unknown, which is an error already
            return MethodConfig()
        section = method_section(info.data["method"])
        return value if isinstance(value, section) else section.model_validate(value)


def method_section(method: str) -> type[MethodConfig]:
    """The ``[model]`` section of a method. Raises ConfigError for an unknown method, or one without."""
    section = getattr(method_class(method), "Config", None)
    if not (isinstance(section, type) and issubclass(section, MethodConfig)):
        raise ConfigError(f"The method {method!r} has no settings: its class needs a MethodConfig as Config.")
    return section


def known_fields(method: str) -> dict[str, Any]:
    """Every dotted key of the schema with this method, and its field."""
    sections: dict[str, type[Section]] = {
        "": Config,
        "model.": method_section(method),
        "train.": TrainConfig,
        "calibration.": CalibrationConfig,
    }
    return {
        prefix + name: field
        for prefix, section in sections.items()
        for name, field in section.model_fields.items()
        if (not prefix and name not in SECTIONS) or prefix
    }


def known_keys(method: str = "refiner") -> list[str]:
    """Every dotted key of the schema with this method."""
    return list(known_fields(method))


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys and values of nested tables."""
    for name, value in values.items():
        if isinstance(value, Mapping) and (value or prefix + name in SECTIONS):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@dataclass(frozen=True)
class Setting:
    """One setting as a person reads it."""

    key: str
    value: Any
    default: Any
    kind: str  # "int", "one of 1, 2, 4", ...
    source: str  # of the value; "default" where nothing sets it
    description: str


def describe_settings(config: Config, sources: Mapping[str, str]) -> list[Setting]:
    """Every setting of a configuration, in the order of the schema."""
    values = dict(flatten(config.model_dump()))
    return [
        Setting(
            key,
            values[key],
            field.default,
            describe_kind(field.annotation),
            sources.get(key, "default"),
            field.description or "",
        )
        for key, field in known_fields(config.method).items()
    ]


def describe_kind(annotation: Any) -> str:
    """The type of a setting in words."""
    if get_origin(annotation) is tuple:
        return f"list: {describe_kind(get_args(annotation)[0])}"
    if get_origin(annotation) is Annotated:
        return describe_kind(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(annotation, str(annotation))
