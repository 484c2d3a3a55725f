"""The frozen backbone: any open_clip image-text model.

:func:`load_backbone` takes a model name and where its weights come from; :func:`build_backbone` builds
one from a stored description and tensors (an exported model). Nothing of a backbone is ever trained.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch

from refiner_cli.core.towers.architectures import (
    HF_HUB,
    LOCAL_DIR,
    Architecture,
    contrastive_part,
    find_architecture,
    preprocess_config,
    split_language,
)
from refiner_cli.core.towers.image import ImageTower
from refiner_cli.core.towers.library_messages import first_line, quiet_libraries
from refiner_cli.core.towers.open_clip_text import OpenClipTextTower
from refiner_cli.core.towers.open_tower import open_image_tower
from refiner_cli.core.towers.text import TextTower
from refiner_cli.core.towers.tokenizers import PromptTokenizer, clip_tokenizer, transformers_tokenizer
from refiner_cli.core.towers.transformers_config import SIZES, buildable, parse_sizes, with_sizes
from refiner_cli.core.towers.transformers_text import TransformersTextTower
from refiner_cli.core.towers.weight_files import StateDict, load_tensors
from refiner_cli.core.towers.weights import RANDOM_WEIGHTS, WeightsSource, find_weights
from refiner_cli.core.towers.weights_profile import WeightsProfile
from refiner_cli.errors import ConfigError, ModelFileError

NO_BLOCKS = "the image tower has no blocks that can be extended: adapters and queries are off"


@dataclass(frozen=True)
class BackboneSpec:
    """What it takes to build the same backbone again, but for its weights."""

    name: str  # as load_backbone takes it
    pretrained: str  # an open_clip tag, a weights file, TAG=FILE, "none", "built-in" or "own"
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
    notes: tuple[str, ...] = ()  # sentences for the log: how the weights were recognised and adapted
    float32_fingerprint: str = ""  # of the weights before they were cast to half precision, if they were
    named_fingerprint: str = ""  # of the weights that the name stands for, where these are a rounded copy

    @cached_property
    def logit_scale(self) -> float:
        """tau, the factor on cosine similarities: read once, because reading waits for the device."""
        return float(self.clip.logit_scale.exp())

    @cached_property
    def logit_bias(self) -> float:
        """What SigLIP-type models add to every logit; 0 for the others."""
        bias = self.clip.logit_bias
        return 0.0 if bias is None else float(bias)

    @property
    def embed_dim(self) -> int:
        """D, the joint width."""
        return int(self.spec.model["embed_dim"])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a preprocessed image, in pixels."""
        size = self.spec.preprocess["size"]
        height, width = (size, size) if isinstance(size, int) else size
        return height, width

    def fingerprint(self) -> str:
        """16 hex digits over all weights (every tensor's name, shape and a sample of its values)."""
        if self.float32_fingerprint:
            return self.float32_fingerprint
        digest = hashlib.sha256()
        for name, value in sorted(self.clip.state_dict().items()):
            flat = value.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 256)].float().cpu()
            digest.update(f"{name}{tuple(value.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    def fingerprint_by_name(self) -> str:
        """The same over the weights that the description names, of which these may be a rounded copy."""
        return self.named_fingerprint or self.fingerprint()

    def use_fingerprint(self) -> str:
        """16 hex digits over the weights and how they are used: activation, heads, the prompts' language."""
        how = json.dumps(self.spec.model, sort_keys=True)
        return hashlib.sha256(f"{self.fingerprint()} {how}".encode()).hexdigest()[:16]


def load_backbone(name: str, pretrained: str, seed: int = 0) -> Backbone:
    """Load a backbone on the CPU in float32.

    Args:
        name: ``tiny``, an open_clip model name, a JSON file with an open_clip model configuration,
            ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``, with ``@LANGUAGE`` behind it or without.
        pretrained: an open_clip tag, a weights file, ``TAG=FILE`` for a file of a tag's weights, or
            ``none`` for random ones drawn from ``seed``. Names of the last two kinds have their own.

    Raises:
        ConfigError: an unknown model or tag, an unsupported tower, or a file that leaves open what it
            was trained with.
        EnvironmentLacksError: the text tower or the tokenizer needs transformers, which is not installed.
        FetchError: the weights, the tokenizer or the text tower's configuration cannot be downloaded.
        ModelFileError: a weights file that cannot be read or does not fit.
    """
    architecture = find_architecture(name)
    source = find_weights(architecture, pretrained)
    config = with_sizes(contrastive_part(architecture.config))
    if source.profile.quick_gelu is not None:
        # The weights decide, not the name: OpenAI's need QuickGELU under every model name.
        config["quick_gelu"] = source.profile.quick_gelu
    preprocess = preprocess_config(config, source.profile.preprocess or {})
    spec = BackboneSpec(architecture.full_name, source.pretrained, config, preprocess, seed)
    return load_weights(spec, source, architecture.folder)


def reload_backbone(spec: BackboneSpec) -> Backbone:
    """Load the backbone of a stored description again: its weights by name, the rest as described.

    Raises: what :func:`load_backbone` raises.
    """
    name, language = split_language(spec.name)
    folder = Path(name.removeprefix(LOCAL_DIR)) if name.startswith(LOCAL_DIR) else None
    repository = name.removeprefix(HF_HUB) if name.startswith(HF_HUB) else ""
    architecture = Architecture(name, spec.model, spec.preprocess, folder, repository, language)
    known = WeightsProfile(bool(spec.model.get("quick_gelu", False)), spec.preprocess)
    return load_weights(spec, find_weights(architecture, spec.pretrained, known), folder)


def load_weights(spec: BackboneSpec, source: WeightsSource, folder: Path | None) -> Backbone:
    """Build the towers, then download and load their weights: what is refused costs no download.

    Args:
        folder: of a ``local-dir:`` name, whose tokenizer is then the folder's.
    """
    hub_name = spec.model["text_cfg"].get("hf_tokenizer_name")
    if spec.pretrained == RANDOM_WEIGHTS:
        hub_name = folder = None
    backbone = assemble(spec, folder if hub_name and folder else hub_name)
    adapted = source.load_into(backbone.clip, spec.name)
    return replace(backbone, notes=(*source.notes, *adapted, *backbone.notes))


def build_backbone(spec: BackboneSpec, state: StateDict, tokenizer: Path | None = None) -> Backbone:
    """Build from a description and tensors, without the network.

    Args:
        tokenizer: folder of a saved tokenizer, where the model needs one that is not CLIP's.

    Raises:
        ConfigError: the description does not give a supported model.
        ModelFileError: the tensors do not fit, or the tokenizer is missing.
    """
    needs_own = spec.model["text_cfg"].get("hf_tokenizer_name") and spec.pretrained != RANDOM_WEIGHTS
    if needs_own and tokenizer is None:
        raise ModelFileError(
            f"The tokenizer of the stored backbone {spec.name} is missing.",
            hint="Copy or export the model again, with its folder tokenizer.",
        )
    backbone = assemble(spec, tokenizer if needs_own else None)
    notes = load_tensors(backbone.clip, state, "The stored weights", spec.name)
    return replace(backbone, notes=(*notes, *backbone.notes))


def assemble(spec: BackboneSpec, tokenizer: str | Path | None) -> Backbone:
    """The towers with random weights.

    Args:
        tokenizer: a name on the Hugging Face hub or a folder; None: CLIP's tokenizer.

    Raises:
        ConfigError: the description does not give a supported model.
    """
    config = {key: value for key, value in spec.model.items() if key != "custom_text"}
    if "timm_model_name" in config["vision_cfg"]:  # never weights of the image tower alone
        config["vision_cfg"] = {**config["vision_cfg"], "timm_model_pretrained": False}
    kind = open_clip.CustomTextCLIP if spec.model.get("custom_text", False) else open_clip.CLIP
    text_config = config["text_cfg"]
    with buildable(text_config, spec.name) as text, quiet_libraries(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        try:
            clip = kind(**{**config, "text_cfg": text})
        except Exception as error:  # noqa: BLE001 - impossible sizes fail in open_clip, timm and torch
            raise ConfigError(f"The backbone {spec.name} cannot be built ({first_line(error)}).") from None
    clip.eval().requires_grad_(False)  # noqa: FBT003
    visual = open_image_tower(clip.visual)
    notes = () if visual.depth else (NO_BLOCKS,)
    tokens = prompt_tokenizer(text_config, tokenizer)
    return Backbone(spec, clip, visual, open_text_tower(clip, text_config, tokens), notes)


def open_text_tower(clip: Any, config: dict[str, Any], tokens: PromptTokenizer) -> TextTower:
    """The text tower of a model; ``config`` is open_clip's configuration of it."""
    if SIZES in config:
        depth = parse_sizes(config[SIZES], SIZES).depth
        return TransformersTextTower(
            clip.text, tokens, depth=depth, context_length=config.get("context_length", 77)
        )
    return OpenClipTextTower(getattr(clip, "text", clip), tokens)


def prompt_tokenizer(text_config: dict[str, Any], source: str | Path | None) -> PromptTokenizer:
    """The tokenizer of a text tower; ``source`` as in :func:`assemble`."""
    length = text_config.get("context_length", 77)
    if source is None:
        language = (text_config.get("tokenizer_kwargs") or {}).get("language")
        if language and not text_config.get("hf_tokenizer_name"):
            raise ConfigError(f"CLIP's tokenizer does not mark languages, so {language!r} cannot be set.")
        sizes = text_config.get(SIZES, text_config)
        return clip_tokenizer(length, sizes.get("vocab_size", 49408))
    return transformers_tokenizer(source, text_config, length)
