"""The schema of a stored model's config.json: every value is checked, with limits, before anything is built.

A model folder may come from anywhere. Nothing in it may run code, contact the network, take all memory or
give numbers without sense; so types are strict, sizes are limited, and unknown keys are errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from refiner_cli.config import MethodConfig, method_section
from refiner_cli.core.model_io.stored_json import as_json, schema_errors
from refiner_cli.core.models.calibration import Calibration, Confidence, Promise, Temperatures, Threshold
from refiner_cli.core.towers.transformers_config import TextSizes

CONFIG = "config.json"
ONNX_FORMAT = "refiner.onnx/1"  # in config.json of an ONNX export
MODEL_FORMATS = "refiner.model/"  # what that of a model directory begins with, in every version
CLIP = "clip."  # first part of the names of a backbone's tensors in model.safetensors
MAX_PARAMETERS = 6e9  # of a backbone; the largest of open_clip has 5e9
TIMM_NAME = r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$"
MAX_OPEN_WORLD = 200_000_000  # states x objects

SmallCount = Annotated[int, Field(ge=1, le=65_536)]
StoredName = Annotated[str, Field(min_length=1, max_length=1_000)]
StoredText = Annotated[str, Field(max_length=10_000)]


def is_plain(value: Any) -> bool:
    """Whether a value is short or small."""
    if isinstance(value, str):
        return len(value) <= 200
    return value is None or (isinstance(value, int | float) and abs(value) <= 1e6)


def plain_option(value: Any) -> Any:
    """An option of open_clip that decides no size: a short text, a small number, or a table of them."""
    if is_plain(value) or (
        isinstance(value, dict) and len(value) <= 20 and all(map(is_plain, value.values()))
    ):
        return value
    raise ValueError("it is not a short text or a small number")


Option = Annotated[Any, BeforeValidator(plain_option)]


class Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Tower(Part):
    """What both towers have; other options of open_clip are plain values."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Option]

    mlp_ratio: Annotated[float, Field(gt=0, le=32)] = 4.0

    def block_parameters(self, layers: int, width: int) -> float:
        """About how many parameters a transformer of this size has."""
        return layers * width**2 * (4 + 2 * self.mlp_ratio)


Layers = Annotated[int, Field(ge=1, le=256)]
Width = Annotated[int, Field(ge=1, le=16_384)]
Side = Annotated[int, Field(ge=1, le=4_096)]


class VisionTower(Tower):
    layers: Layers | tuple[Layers, Layers, Layers, Layers] = 12  # four numbers: a ResNet
    width: Width = 768
    head_width: Annotated[int, Field(ge=1, le=1_024)] = 64
    patch_size: Side | None = 16
    image_size: Side | tuple[Side, Side] = 224
    attn_pooler_queries: SmallCount = 256
    attn_pooler_heads: SmallCount = 8
    # A bare architecture of timm: "hf-hub:..." and the like would make it ask the network.
    timm_model_name: Annotated[str, Field(pattern=TIMM_NAME, max_length=100)] | None = None
    timm_model_pretrained: Literal[False] = False

    def parameters(self) -> float:
        """About how many parameters the tower has; 0 where timm knows its size."""
        if self.timm_model_name:
            return 0.0
        if isinstance(self.layers, int):
            return self.block_parameters(self.layers, self.width)
        return sum(17.0 * count * (self.width * 2**stage) ** 2 for stage, count in enumerate(self.layers))


class StoredTextTower(Tower):
    layers: Layers = 12
    context_length: Annotated[int, Field(ge=4, le=4_096)] = 77
    vocab_size: Annotated[int, Field(ge=4, le=1_000_000)] = 49_408
    width: Width = 512
    heads: SmallCount = 8
    hf_tokenizer_name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    hf_model_name: Annotated[str, Field(min_length=1, max_length=1_000)] | None = None
    transformers: TextSizes | None = None  # of a tower of that library, which hf_model_name names

    @model_validator(mode="after")
    def _has_its_sizes(self) -> StoredTextTower:
        if (self.hf_model_name is None) != (self.transformers is None):
            raise ValueError("hf_model_name and transformers go together")
        return self

    def parameters(self) -> float:
        """About how many parameters the tower has."""
        if self.transformers is not None:
            return self.transformers.parameters()
        return self.block_parameters(self.layers, self.width) + self.vocab_size * self.width


class StoredArchitecture(Part):
    """open_clip's model configuration."""

    embed_dim: Annotated[int, Field(ge=1, le=16_384)]
    vision_cfg: VisionTower
    text_cfg: StoredTextTower
    quick_gelu: bool = False
    custom_text: bool = False
    init_logit_scale: Annotated[float, Field(ge=-100, le=20)] | None = None
    init_logit_bias: Annotated[float, Field(ge=-1e4, le=1e4)] | None = None

    def parameters(self) -> float:
        """About how many parameters the towers have."""
        return self.vision_cfg.parameters() + self.text_cfg.parameters()

    @model_validator(mode="after")
    def _of_possible_size(self) -> StoredArchitecture:
        if self.parameters() > MAX_PARAMETERS:
            raise ValueError(f"the towers have more than {MAX_PARAMETERS:.0e} parameters")
        return self


class PreprocessConfig(Part):
    """open_clip's preprocessing configuration."""

    size: Side | tuple[Side, Side]
    mode: Literal["RGB"] = "RGB"
    mean: tuple[Annotated[float, Field(ge=-10, le=10)], ...] = Field(min_length=3, max_length=3)
    std: tuple[Annotated[float, Field(ge=1e-3, le=100)], ...] = Field(min_length=3, max_length=3)
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: Annotated[int, Field(ge=0, le=255)] = 0


class StoredBackbone(Part):
    name: StoredName
    pretrained: Annotated[str, Field(max_length=1_000)]
    model: StoredArchitecture
    preprocess: PreprocessConfig
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    included: bool

    @model_validator(mode="after")
    def _images_of_the_size_of_the_tower(self) -> StoredBackbone:
        sizes = (self.preprocess.size, self.model.vision_cfg.image_size)
        made, taken = ((size, size) if isinstance(size, int) else size for size in sizes)
        if made != taken:
            raise ValueError(f"preprocessing makes images of {made} and the tower takes {taken}")
        return self


Labels = Annotated[list[StoredName], Field(max_length=100_000)]
Pairs = Annotated[list[tuple[StoredName, StoredName]], Field(max_length=1_000_000)]


class StoredLabels(Part):
    states: Labels
    objects: Labels
    pairs: Pairs
    seen_pairs: Pairs

    @model_validator(mode="after")
    def _fits_together(self) -> StoredLabels:
        states, objects = set(self.states), set(self.objects)
        if len(states) * len(objects) > MAX_OPEN_WORLD:
            raise ValueError(f"there are more than {MAX_OPEN_WORLD:,} combinations of states and objects")
        for state, obj in (*self.pairs, *self.seen_pairs):
            if state not in states or obj not in objects:
                raise ValueError(f"the pair '{state} {obj}' is not made of its states and objects")
        return self


Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]


UnitShare = Annotated[float, Field(ge=0, le=1)]


class StoredTemperatures(Part):
    pair: Temperature = 1.0
    object: Temperature = 1.0
    state: Temperature = 1.0


class StoredThreshold(Part):
    probability: UnitShare | None
    coverage: UnitShare
    precision: UnitShare | None

    def value(self) -> Threshold:
        return Threshold(self.probability, self.coverage, self.precision)


class StoredPromise(Part):
    precision: UnitShare
    pair: StoredThreshold
    object: StoredThreshold
    state: StoredThreshold

    def value(self) -> Promise:
        return Promise(self.precision, self.pair.value(), self.object.value(), self.state.value())


class StoredConfidence(Part):
    temperatures: StoredTemperatures = StoredTemperatures()
    promises: Annotated[list[StoredPromise], Field(max_length=1000)] = Field(default_factory=list)

    def value(self) -> Confidence:
        kept = tuple(sorted((one.value() for one in self.promises), key=lambda one: one.precision))
        return Confidence(Temperatures(**self.temperatures.model_dump()), kept)


class StoredCalibration(Part):
    state_weight: Annotated[float, Field(ge=0, le=1e3)]
    object_weight: Annotated[float, Field(ge=0, le=1e3)]
    bias: Annotated[float, Field(ge=-1e6, le=1e6)]
    hubness_strength: Annotated[float, Field(ge=0, le=1)]
    hubness_softness: Annotated[float, Field(ge=1e-3, le=1e2)]
    wise_ft_alpha: Annotated[float, Field(ge=0, le=1)]
    tta_shifts: Literal[1, 2, 4]
    closed: StoredConfidence = StoredConfidence()
    open: StoredConfidence = StoredConfidence()
    chosen_on: Literal["", "validation", "cross-validation", "nothing"] = ""
    open_bias: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None  # no key in earlier versions

    def value(self) -> Calibration:
        own = self.model_dump(exclude={"closed", "open"})
        return Calibration(**own, closed=self.closed.value(), open=self.open.value())


class StoredModel(Part):
    """config.json of the present format."""

    format: str
    refiner: StoredText
    method: StoredName
    dataset: StoredText
    dataset_path: StoredText
    dataset_fingerprint: StoredText
    step: Annotated[int, Field(ge=0, lt=2**63)]
    metrics: dict[StoredName, float | None]  # validation, percent; None: undefined
    model: dict[str, Any]  # the method's own section
    backbone: StoredBackbone
    labels: StoredLabels
    calibration: StoredCalibration

    @classmethod
    def parse(cls, config: dict[str, Any], source: Path) -> tuple[StoredModel, MethodConfig]:
        """The checked content and the method's settings. Raises ModelFileError naming the key."""
        with schema_errors(source):
            stored = cls.model_validate_json(as_json(config))
            section = method_section(stored.method)
            return stored, section.model_validate_json(as_json(stored.model), strict=True)
