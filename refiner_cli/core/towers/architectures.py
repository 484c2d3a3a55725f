"""What a backbone's name stands for: the open_clip model configuration and where it comes from.

A name is ``tiny``, an open_clip model name (``ViT-B-32``, also as OpenAI spells it, ``ViT-B/32``), a JSON
file with a model configuration, ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``; ``@deu_Latn`` behind it is the
language of the prompts, for text towers that want to know it (NLLB). Only ``hf-hub:`` contacts the network.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import timm

from refiner_cli.core.towers import tiny
from refiner_cli.core.towers.hub_access import download_hub_file
from refiner_cli.errors import ConfigError

CONFIG_FILE = "open_clip_config.json"
LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"
LANGUAGE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
# A folder's weights, the preferred names first.
WEIGHTS_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)


@dataclass(frozen=True)
class Architecture:
    """A named model configuration, without weights."""

    name: str  # as open_clip spells it; a file or folder by its complete path
    config: dict[str, Any]  # open_clip's model configuration
    preprocess: dict[str, Any] | None = None  # what the source of the configuration says of preprocessing
    folder: Path | None = None  # holds the weights and the tokenizer (local-dir:)
    repository: str = ""  # holds the weights (hf-hub:)
    language: str = ""  # of the prompts, as the tokenizer names it; empty: its own default

    @property
    def full_name(self) -> str:
        """The name with the language."""
        return f"{self.name}@{self.language}" if self.language else self.name

    @property
    def has_own_weights(self) -> bool:
        """Whether the name stands for weights, too."""
        return self.folder is not None or bool(self.repository)


def find_architecture(name: str) -> Architecture:
    """The architecture that a name stands for.

    Raises:
        ConfigError: the name is unknown, or its configuration cannot be read or is incomplete.
        FetchError: the configuration cannot be downloaded.
    """
    bare, language = split_language(name)
    if language:
        found = find_architecture(bare)
        return replace(found, config=with_language(found.config, language), language=language)
    if name == tiny.NAME:
        return Architecture(name, tiny.tiny_config())
    if name.startswith(LOCAL_DIR):
        folder = Path(name.removeprefix(LOCAL_DIR))
        config, preprocess = read_model_config(folder / CONFIG_FILE)
        return Architecture(f"{LOCAL_DIR}{folder.absolute()}", config, preprocess, folder)
    if name.startswith(HF_HUB):
        repository = name.removeprefix(HF_HUB)
        config, preprocess = read_model_config(download_hub_file(repository, CONFIG_FILE))
        return Architecture(name, config, preprocess, repository=repository)
    if name.endswith(".json"):
        return Architecture(str(Path(name).absolute()), *read_model_config(Path(name)))
    spelled = name if name in open_clip.list_models() else name.replace("@", "-").replace("/", "-")
    spelled = spelled.removesuffix("px") if "@" in name else spelled
    if spelled not in open_clip.list_models():
        close = similar_backbones(spelled)
        raise ConfigError(
            f"The backbone {name!r} is unknown.",
            hint=f"Did you mean {' or '.join(close)}?"
            if close
            else "Use tiny, or an open_clip model such as ViT-L-14 or ViT-B-32.",
        )
    return Architecture(spelled, open_clip.get_model_config(spelled))


def split_language(name: str) -> tuple[str, str]:
    """A backbone's name and the language behind it, empty where there is none."""
    bare, _, language = name.rpartition("@")
    return (bare, language) if bare and LANGUAGE.fullmatch(language) else (name, "")


def with_language(config: dict[str, Any], language: str) -> dict[str, Any]:
    """A model configuration whose tokenizer marks prompts with a language."""
    text = config["text_cfg"]
    kwargs = {**(text.get("tokenizer_kwargs") or {}), "language": language}
    return {**config, "text_cfg": {**text, "tokenizer_kwargs": kwargs}}


def similar_backbones(name: str) -> list[str]:
    """The names of backbones that somebody may have meant who wrote another one, best first."""
    known = {known.lower(): known for known in (tiny.NAME, *open_clip.list_models())}
    return [known[close] for close in difflib.get_close_matches(name.lower(), known, 3)]


def read_model_config(file: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The model configuration in a JSON file and, where it has one, the preprocessing configuration."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"The backbone configuration {file} cannot be read ({error}).") from None
    config = content.get("model_cfg", content) if isinstance(content, dict) else None
    preprocess = content.get("preprocess_cfg") if isinstance(content, dict) else None
    sections = ("vision_cfg", "text_cfg")
    if (
        not isinstance(config, dict)
        or not isinstance(config.get("embed_dim"), int)
        or not all(isinstance(config.get(section), dict) for section in sections)
    ):
        raise ConfigError(
            f"{file} is not an open_clip model configuration: it needs embed_dim, vision_cfg and text_cfg."
        )
    if "timm_model_name" in config["vision_cfg"]:
        check_timm_name(config["vision_cfg"]["timm_model_name"], file)
    if preprocess is not None:
        check_preprocess(preprocess, file)
    return config, preprocess


def check_timm_name(name: object, source: Path) -> None:
    """Refuse what timm would load from somewhere else. Raises ConfigError."""
    if not isinstance(name, str) or not timm.is_model(name):
        raise ConfigError(f"{source} names the timm model {name!r}, which the installed timm does not have.")


def check_preprocess(preprocess: object, source: Path) -> None:
    """Refuse impossible preprocessing values. Raises ConfigError."""

    def is_triple(value: object, *, above: float = -math.inf) -> bool:
        return (
            isinstance(value, list | tuple)
            and len(value) == 3
            and all(isinstance(v, int | float) and above < v < math.inf for v in value)
        )

    checks: dict[str, Callable[[object], bool]] = {
        "mean": is_triple,
        "std": lambda value: is_triple(value, above=0),
        "interpolation": lambda value: value in ("bicubic", "bilinear", "random"),
        "resize_mode": lambda value: value in ("shortest", "longest", "squash"),
        "fill_color": lambda value: isinstance(value, int) and 0 <= value <= 255,
    }
    if not isinstance(preprocess, dict):
        raise ConfigError(f"The preprocessing in {source} is not an object.")
    for key, check in checks.items():
        value = preprocess.get(key)
        if value is not None and not check(value):
            raise ConfigError(f"{source} has the impossible value {value!r} for preprocess_cfg.{key}.")


def contrastive_part(config: dict[str, Any]) -> dict[str, Any]:
    """A model configuration without the caption decoder that CoCa has beside its two towers."""
    if "multimodal_cfg" not in config:
        return dict(config)
    towers = {name: {**config[name], "output_tokens": False} for name in ("vision_cfg", "text_cfg")}
    kept = {name: value for name, value in config.items() if name != "multimodal_cfg"}
    return {**kept, **towers, "custom_text": True}


def preprocess_config(config: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any]:
    """open_clip's preprocessing for a model: its defaults, what is ``stated``, and the model's image size."""
    chosen: dict[str, Any] = open_clip.transform.merge_preprocess_dict(
        open_clip.transform.PreprocessCfg().__dict__, stated
    )
    chosen["size"] = config["vision_cfg"].get("image_size", 224)
    return chosen
