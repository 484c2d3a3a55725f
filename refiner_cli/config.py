"""The configuration of a run: one validated schema, built from four sources.

Defaults, then ``--config FILE.toml``, then ``REFINER_<SECTION>__<KEY>`` environment variables, then
flags and ``--set section.key=value``; the later wins. An unknown key is an error that names the
nearest known one, and every error says where the value came from.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refiner_cli.errors import ConfigError

Method = Literal["refiner", "clip", "coop", "csp", "troika"]
Layer = tuple[str, dict[str, Any]]  # where the values came from, and the nested values


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(Section):
    """The parts of Refiner; every one can be switched off."""

    adapters: bool = Field(default=True, description="bottleneck adapters in the last visual blocks")
    adapter_width: int = Field(64, ge=1, description="r, the adapters' inner width")
    adapter_blocks: int = Field(
        0, ge=0, description="m, how many last blocks carry adapters; 0: half of them"
    )
    queries: int = Field(8, ge=0, description="K, learnable concept queries; 0 switches them off")
    query_blocks: int = Field(1, ge=1, description="last visual blocks that the concept queries go through")
    fusion: bool = Field(default=True, description="image-to-text maps")
    fusion_width: int = Field(0, ge=0, description="hidden width of the maps; 0: the joint width")
    align_state: bool = Field(default=True, description="alignment of images with states")
    align_object: bool = Field(default=True, description="alignment of images with objects")
    context: str = Field("a photo of", min_length=1, description="words that the learned contexts start from")
    learn_context: bool = Field(default=True, description="whether the contexts are trained")
    learn_words: bool = Field(default=True, description="whether the state and object vectors are trained")
    word_dropout: float = Field(0.3, ge=0, lt=1, description="dropout on state and object vectors")
    word_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="how far trained words leave CLIP's own once training is over; 1: all the way",
    )
    grids: Literal[1, 2, 4] = Field(
        1, description="patch grids that a picture is read on once training is over, each for a pass"
    )
    hubs: bool = Field(
        default=True, description="take from a pair's score what all training images get of it"
    )


class TrainConfig(Section):
    """The loop."""

    epochs: int = Field(15, ge=1)
    max_steps: int = Field(0, ge=0, description="stop after so many steps; 0: the epochs decide")
    batch: int = Field(64, ge=1, description="images of one optimizer step")
    lr: float = Field(5e-4, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate climbs")
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    state_weight: float = Field(0.5, ge=0, description="w_s, weight of the state alignment in the loss")
    object_weight: float = Field(0.5, ge=0, description="w_o, weight of the object alignment in the loss")
    concept_weight: float = Field(
        0.5, ge=0, description="w_c, weight in the loss of the concepts aligned on their own"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    augment: Literal["published", "affine", "none"] = Field(
        "published",
        description="published: flip, perspective, turn; affine: flip, turn, scale, shift, edges mirrored",
    )
    text_chunk: int = Field(0, ge=0, description="prompts encoded at once; 0: as many as fit in memory")
    grad_checkpoint: bool = Field(
        default=False, description="keep no activations inside visual blocks, compute them again"
    )
    cache: int = Field(
        0, ge=0, description="views of an image whose lower activations are kept on disk; 0: no cache"
    )
    workers: int = Field(-1, ge=-1, description="processes that decode; -1: by the machine")
    save_minutes: float = Field(
        10.0, ge=0, description="time between checkpoints within an epoch; 0: every step"
    )
    val_epochs: int = Field(1, ge=1, description="validate after every so many epochs, and at the end")
    max_skipped: int = Field(
        10, ge=0, description="steps in a row that may be skipped for a NaN or infinity before training stops"
    )
    deterministic: bool = Field(default=False, description="only kernels that repeat their results; slower")


class Config(Section):
    """Everything that decides what a run computes."""

    method: Method = "refiner"
    backbone: str = Field("ViT-L-14", min_length=1, description="an open_clip ViT model, or tiny")
    pretrained: str = Field("openai", description="an open_clip tag, a weights file, or none")
    seed: int = Field(0, ge=0)
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()


def resolve(layers: Iterable[Layer]) -> Config:
    """Merge layers, the later winning, and validate. Raises ConfigError naming key, value and source."""
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for source, values in layers:
        for key, value in flatten(values):
            check_key(key, source)
            origin[key] = source
            *sections, leaf = key.split(".")
            place = merged
            for section in sections:
                place = place.setdefault(section, {})
            place[leaf] = value
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{origin.get(key, 'configuration')}: {key} = {first['input']!r} is not valid: "
            f"{first['msg'][:1].lower()}{first['msg'][1:]}."
        ) from None


def known_keys(section: type[Section] = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the schema."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            keys += known_keys(inner, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def check_key(key: str, source: str) -> None:
    """Raise ConfigError for a key that the schema does not have."""
    keys = known_keys()
    if key in keys:
        return
    leaves = {known.rsplit(".", 1)[-1]: known for known in keys}
    near = difflib.get_close_matches(key, keys, 1) or [
        leaves[leaf] for leaf in difflib.get_close_matches(key.rsplit(".", 1)[-1], leaves, 1)
    ]
    hint = f"Did you mean '{near[0]}'?" if near else "'refiner train --help' lists the keys."
    raise ConfigError(f"{source}: unknown key '{key}'.", hint=hint)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys and values of nested tables."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def from_file(file: Path) -> Layer:
    """One layer from a TOML file."""
    try:
        return str(file), tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"The config file {file} does not exist.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"The config file {file} is not valid TOML ({error}).") from None


def from_environment(environment: Mapping[str, str]) -> Layer:
    """One layer from ``REFINER_SEED``, ``REFINER_TRAIN__LR`` and the like; REFINER_HOME is no key."""
    values: dict[str, Any] = {}
    for name, text in environment.items():
        if name.startswith("REFINER_") and name != "REFINER_HOME":
            values[name.removeprefix("REFINER_").lower().replace("__", ".")] = text
    return "environment", values


def from_assignments(assignments: Iterable[str]) -> Layer:
    """One layer from ``key=value`` texts, as ``--set`` takes them."""
    values: dict[str, Any] = {}
    for text in assignments:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set {text!r} is not of the form key=value.")
        values[key.strip()] = value.strip()
    return "--set", values
