"""The frozen backbone: any open_clip image-text model with a ViT image tower.

:func:`load_backbone` takes a model name and where its weights come from; :func:`build_backbone`
puts one together from a stored description and weights (an exported model). Nothing of a backbone
is ever trained.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from refiner_cli.core.towers import tiny
from refiner_cli.core.towers.image import ImageTower, open_image_tower
from refiner_cli.core.towers.text import PromptTokenizer, TextTower
from refiner_cli.errors import ConfigError, EnvironmentLacksError, FetchError, ModelFileError

RANDOM_WEIGHTS = "none"
StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class BackboneSpec:
    """What it takes to build the same backbone again, but for its weights."""

    name: str  # an open_clip model name, tiny, or a file with an open_clip model configuration
    pretrained: str  # an open_clip tag, a weights file, "none" or "built-in"
    model: dict[str, Any]  # open_clip's model configuration
    preprocess: dict[str, Any]  # open_clip's preprocessing configuration
    seed: int = 0  # of random weights


@dataclass(frozen=True)
class Backbone:
    """Both towers, ready to use."""

    spec: BackboneSpec
    clip: Any  # open_clip.CLIP or open_clip.CustomTextCLIP
    visual: ImageTower
    text: TextTower

    @property
    def logit_scale(self) -> float:
        """tau, the factor on cosine similarities."""
        return float(self.clip.logit_scale.exp())

    @property
    def logit_bias(self) -> float:
        """What SigLIP-type models add to every logit; 0 for the others."""
        bias = self.clip.logit_bias
        return 0.0 if bias is None else float(bias)

    @property
    def embed_dim(self) -> int:
        """D, the joint width."""
        return int(self.spec.model["embed_dim"])

    def fingerprint(self) -> str:
        """16 hex digits over all weights (every tensor's name, shape and a sample of its values)."""
        digest = hashlib.sha256()
        for name, value in sorted(self.clip.state_dict().items()):
            flat = value.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 256)].float().cpu()
            digest.update(f"{name}{tuple(value.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:16]


def load_backbone(name: str, pretrained: str, seed: int = 0) -> Backbone:
    """Load a backbone on the CPU in float32.

    Args:
        name: an open_clip model name, ``tiny``, or a JSON file with an open_clip model configuration.
        pretrained: an open_clip tag, a local weights file, or ``none`` for random ones drawn from ``seed``.

    Raises:
        ConfigError: an unknown model, tag or unsupported tower.
        FetchError: the weights cannot be fetched.
        ModelFileError: a weights file that does not fit.
    """
    config = model_config(name)
    if pretrained == RANDOM_WEIGHTS:
        return build_backbone(
            BackboneSpec(name, RANDOM_WEIGHTS, config, preprocess_config(config, {}), seed), None
        )
    if name == tiny.NAME and not Path(pretrained).is_file():
        return build_backbone(
            BackboneSpec(name, "built-in", config, preprocess_config(config, {})), tiny.load()
        )
    tag = open_clip.get_pretrained_cfg(name, pretrained) or {}
    weights: str | StateDict
    if tag:
        # The tag decides the activation: OpenAI's weights need QuickGELU under every model name.
        config["quick_gelu"] = bool(tag.get("quick_gelu", False))
        weights = download_weights(name, pretrained, tag)
    elif Path(pretrained).is_file():
        small = name == tiny.NAME and tiny.is_small(Path(pretrained))
        weights = tiny.load(Path(pretrained)) if small else pretrained
    else:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ConfigError(
            f"{pretrained!r} is neither a weights file nor a tag of {name}.", hint=f"Its tags: {tags}."
        )
    spec = BackboneSpec(name, pretrained, config, preprocess_config(config, tag))
    return build_backbone(spec, weights)


def model_config(name: str) -> dict[str, Any]:
    """open_clip's configuration of a model, or the content of a configuration file."""
    if name == tiny.NAME:
        return tiny.config()
    if name.endswith(".json"):
        try:
            config = json.loads(Path(name).read_text("utf-8"))
            return dict(config.get("model_cfg", config))
        except (OSError, ValueError) as error:
            raise ConfigError(f"The backbone configuration {name} cannot be read ({error}).") from None
    config = open_clip.get_model_config(name)
    if config is None:
        raise ConfigError(
            f"The backbone {name!r} is unknown.",
            hint="Use tiny or an open_clip ViT such as ViT-L-14 or ViT-B-32.",
        )
    return dict(config)


def preprocess_config(config: dict[str, Any], tag: dict[str, Any]) -> dict[str, Any]:
    """open_clip's preprocessing for a model and a tag's own mean, deviation and resizing."""
    chosen: dict[str, Any] = open_clip.transform.merge_preprocess_dict(
        open_clip.transform.PreprocessCfg().__dict__, tag
    )
    chosen["size"] = config["vision_cfg"].get("image_size", 224)
    return chosen


def download_weights(name: str, pretrained: str, tag: dict[str, Any]) -> str:
    """Path of the weights of a tag, downloaded once into the usual model cache."""
    with quiet_libraries():
        try:
            return str(open_clip.download_pretrained(tag))
        except Exception as error:  # noqa: BLE001 - the hub's client raises a dozen unrelated kinds
            reason = str(error).splitlines()[0]
            raise FetchError(
                f"The weights {pretrained} of {name} cannot be fetched ({reason})",
                hint="Fetch the file elsewhere and pass it with --pretrained FILE.",
            ) from None


def build_backbone(
    spec: BackboneSpec, weights: str | StateDict | None, tokenizer: Path | None = None
) -> Backbone:
    """Build from a description and weights: a file, a state dict, or None for random ones.

    Args:
        tokenizer: folder of a saved tokenizer, where the model needs one that is not CLIP's.
    """
    config = {key: value for key, value in spec.model.items() if key != "custom_text"}
    custom = spec.model.get("custom_text", False) or "hf_model_name" in config["text_cfg"]
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    if "multimodal_cfg" in config or "hf_model_name" in config["text_cfg"]:
        raise ConfigError(
            f"The backbone {spec.name} has a text tower that is not open_clip's own transformer.",
            hint="Use an open_clip ViT such as ViT-L-14, ViT-B-32 or ViT-B-16-SigLIP.",
        )
    with quiet_libraries(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        try:
            clip = kind(**config)
        except (TypeError, KeyError, ValueError, RuntimeError) as error:
            raise ConfigError(f"The backbone {spec.name} cannot be built ({error}).") from None
        if weights is not None:
            load_weights(clip, spec, weights)
    clip.eval().requires_grad_(False)  # noqa: FBT003
    return Backbone(
        spec, clip, open_image_tower(clip.visual), TextTower(clip, tokenizer_for(spec, tokenizer))
    )


def load_weights(clip: nn.Module, spec: BackboneSpec, weights: str | StateDict) -> None:
    """Load a weights file or a state dict into a model."""
    source = weights if isinstance(weights, str) else "the given tensors"
    try:
        if isinstance(weights, str):
            open_clip.load_checkpoint(clip, weights, weights_only=True)
        else:
            clip.load_state_dict(weights)
    except Exception as error:  # noqa: BLE001 - torn files fail in many ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelFileError(f"The weights {source} do not fit the backbone {spec.name} ({reason})") from None


def tokenizer_for(spec: BackboneSpec, folder: Path | None) -> PromptTokenizer:
    """The tokenizer that belongs to a text tower.

    Random weights have no vocabulary of their own: there CLIP's tokens are folded into the table.
    """
    text = spec.model["text_cfg"]
    length, size = text.get("context_length", 77), text.get("vocab_size", 49408)
    options = dict(text.get("tokenizer_kwargs") or {})
    if "hf_tokenizer_name" not in text or spec.pretrained == RANDOM_WEIGHTS:
        clip_bpe = open_clip.SimpleTokenizer(context_length=length)
        plain = PromptTokenizer.wrap(clip_bpe, length, clip_bpe.encode)
        return PromptTokenizer(
            encode=lambda words: [i % size for i in plain.encode(words)],
            prefix_ids=tuple(i % size for i in plain.prefix_ids),
            eos_id=plain.eos_id % size,
            pad_id=plain.pad_id % size,
        )
    hugging = hf_tokenizer(spec, str(folder) if folder else text["hf_tokenizer_name"], length, options)

    def split(words: str) -> list[int]:
        return list(hugging.tokenizer(hugging.clean_fn(words), add_special_tokens=False)["input_ids"])

    return PromptTokenizer.wrap(hugging, length, split)


def hf_tokenizer(spec: BackboneSpec, source: str, length: int, options: dict[str, Any]) -> Any:
    """A tokenizer of the transformers library, from the hub or a folder."""
    mode = spec.model["text_cfg"].get("tokenizer_mode")
    try:
        return open_clip.tokenizer.HFTokenizer(source, context_length=length, tokenizer_mode=mode, **options)
    except ImportError:
        raise EnvironmentLacksError(
            f"The backbone {spec.name} needs the package transformers.",
            hint="Run: pip install transformers sentencepiece",
        ) from None
    except Exception as error:  # noqa: BLE001 - the hub's client raises a dozen unrelated kinds
        reason = str(error).splitlines()[0]
        raise FetchError(f"The tokenizer {source} cannot be fetched ({reason})") from None


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' own log lines and warnings off the terminal; errors come as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
