"""CLIP zero-shot as a model: a backbone by name, with nothing trained."""

from __future__ import annotations

import open_clip

from refiner_cli.config import method_section
from refiner_cli.core.model_io.checkpoint import ModelInfo
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.towers import tiny
from refiner_cli.core.towers.architectures import HF_HUB, LOCAL_DIR, find_architecture
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.core.towers.weights import BUILT_IN, CONFIG_DEFAULT, OWN
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import ConfigError

ELSEWHERE = (HF_HUB, LOCAL_DIR)  # prefixes of models that are not in open_clip's own list
DEFAULT_TAG = "openai"
NO_LABELS = LabelSpace((), (), (), frozenset())


def is_backbone_name(text: str) -> bool:
    """Whether a text names a backbone, ``NAME`` or ``NAME:TAG``, rather than a stored model."""
    if text.startswith(ELSEWHERE):
        return True
    name, _ = split_name(text)
    if name.endswith(".json"):
        return False
    try:
        find_architecture(name)
    except ConfigError:
        return False
    return True


def split_name(text: str) -> tuple[str, str]:
    """The model name and the tag of its weights; the tag is empty where none is given."""
    if text.startswith(ELSEWHERE):
        return text, ""
    name, _, tag = text.partition(":")
    return name, tag


def backbone_text(name: str, pretrained: str) -> str:
    """A backbone as commands take it: ``NAME:TAG``, or the name alone where it has weights of its own."""
    own = name == tiny.NAME or name.startswith(ELSEWHERE)
    return name if own and pretrained in {"", BUILT_IN, OWN, CONFIG_DEFAULT} else f"{name}:{pretrained}"


def zero_shot_model(text: str, space: LabelSpace = NO_LABELS) -> tuple[Model, ModelInfo]:
    """The ``clip`` method on a backbone, on the CPU, in evaluation.

    Args:
        text: ``tiny``, ``NAME`` or ``NAME:TAG`` of open_clip, ``hf-hub:OWNER/NAME`` or ``local-dir:DIR``.
            Without a tag the weights are OpenAI's, or the model's only ones.
        space: the states, objects and pairs that the model is to know; it has seen none of the pairs.

    Raises:
        ConfigError: the model is unknown, or has several tags and none is given.
        FetchError: the weights cannot be fetched.
    """
    name, tag = split_name(text)
    backbone = load_backbone(name, tag or default_tag(name))
    model = build_model("clip", backbone, method_section("clip")(), space)
    info = ModelInfo("clip", "nothing", "", "", 0, {})
    return model.eval(), info


def default_tag(name: str) -> str:
    """The tag that is meant where none is given."""
    if name == tiny.NAME or name.startswith(ELSEWHERE):
        return ""
    tags = open_clip.list_pretrained_tags_by_model(find_architecture(name).name)
    if DEFAULT_TAG in tags:
        return DEFAULT_TAG
    if len(tags) == 1:
        return str(tags[0])
    if not tags:
        raise ConfigError(f"open_clip has no pretrained weights for {name}.", hint="Choose another model.")
    raise ConfigError(
        f"{name} has weights under several tags ({', '.join(tags)}).", hint=f"Name one: {name}:{tags[0]}."
    )
