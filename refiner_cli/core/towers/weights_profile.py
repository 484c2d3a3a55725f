"""What weights were trained with and a file does not hold: the activation and the preprocessing.

The same weights must compute the same thing whether they come by tag or as a file. For a file without a
tag the answer is looked for in this order:

1. a configuration beside it, of open_clip or of transformers (:mod:`~refiner_cli.core.towers.sidecar`);
2. its format: OpenAI's archives need QuickGELU;
3. the tags of the model, where they agree;
4. the sha256 that open_clip's table holds for a tag.

Where that leaves a doubt the user is asked: a wrong guess would show in nothing but worse results.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip

from refiner_cli.core.towers.architectures import preprocess_config
from refiner_cli.errors import ConfigError
from refiner_cli.files import sha256

MIN_HASH_DIGITS = 8  # of a sha256, to identify a file


@dataclass(frozen=True)
class WeightsProfile:
    """What weights were trained with; None where it is not known."""

    quick_gelu: bool | None = None
    preprocess: dict[str, Any] | None = None  # open_clip's keys; what they leave out is open_clip's default

    def completed_by(self, other: WeightsProfile) -> WeightsProfile:
        """This profile with its gaps filled from another one."""
        return WeightsProfile(
            other.quick_gelu if self.quick_gelu is None else self.quick_gelu,
            other.preprocess if self.preprocess is None else self.preprocess,
        )

    def comparable(self) -> dict[str, Any]:
        """Every setting, the image size left out."""
        settings = preprocess_config({"vision_cfg": {}}, self.preprocess or {})
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        return {"activation": "QuickGELU" if self.quick_gelu else "GELU", **plain}


def tag_profile(name: str, tag: str) -> WeightsProfile:
    """What open_clip's entry for a tag of a model says.

    Where the entry has no word on the activation, the model's configuration has: roberta-ViT-B-32 is
    QuickGELU by its configuration alone. Neither saying a word means GELU.
    """
    entry, model = open_clip.get_pretrained_cfg(name, tag), open_clip.get_model_config(name) or {}
    return WeightsProfile(bool(entry.get("quick_gelu", model.get("quick_gelu", False))), entry)


def file_profile(
    name: str, file: Path, known: WeightsProfile, *, from_openai: bool
) -> tuple[WeightsProfile, str]:
    """The profile of a weights file without a tag, and a sentence on how it was found.

    Args:
        name: of the open_clip model.
        known: what is known already.
        from_openai: whether the file has OpenAI's own format.

    Raises:
        ConfigError: the activation or the preprocessing stays open; the hint has the possible commands.
    """
    if from_openai:
        openai = WeightsProfile(quick_gelu=True, preprocess={})  # open_clip's defaults are OpenAI's
        return known.completed_by(openai), f"{file.name} is in OpenAI's format, which means QuickGELU"
    entries = {tag: tag_profile(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}
    possible = {
        tag: known.completed_by(profile)
        for tag, profile in entries.items()
        if known.quick_gelu in {None, profile.quick_gelu}
    }
    distinct = {json.dumps(p.comparable()): tag for tag, p in reversed(possible.items())}
    if len(distinct) <= 1:
        return next(iter(possible.values()), known), ""
    tag = tag_by_hash(name, file)
    if tag in possible:
        return possible[tag], f"{file.name} is the file of the tag {tag}, by its sha256"
    raise ambiguous_file(name, file, {tag: possible[tag] for tag in reversed(distinct.values())})


def ambiguous_file(name: str, file: Path, possible: dict[str, WeightsProfile]) -> ConfigError:
    """The error that asks for a tag, and says what each would mean."""
    settings = {tag: profile.comparable() for tag, profile in possible.items()}
    first = next(iter(settings.values()))
    differing = [key for key in first if any(one[key] != first[key] for one in settings.values())]
    commands = [
        f"--pretrained {tag}={file} ({', '.join(setting_text(key, one[key]) for key in differing)})"
        for tag, one in settings.items()
    ]
    return ConfigError(
        f"The weights file {file} does not tell with which activation and preprocessing it was trained,"
        f" and the weights published for {name} differ in them.",
        hint=f"Name a tag that was trained in the same way: {' or '.join(commands)}.",
    )


def setting_text(key: str, value: Any) -> str:
    """One setting in a sentence; of the three channels the first tells the usual values apart."""
    if key == "activation":
        return str(value)
    return f"{key} {value[0]:.3g}" if isinstance(value, list) else f"{key} {value}"


def tag_by_hash(name: str, file: Path) -> str:
    """The tag of a model whose sha256 a file has; empty if there is none."""
    expected = {
        tag: digits
        for tag in open_clip.list_pretrained_tags_by_model(name)
        if (digits := published_sha256(open_clip.get_pretrained_url(name, tag)))
    }
    if not expected:
        return ""
    found = sha256(file)
    return next((tag for tag, digits in expected.items() if found.startswith(digits)), "")


def published_sha256(url: str) -> str:
    """The sha256, or its beginning, in the address of published weights; empty if there is none.

    OpenAI's addresses have it as the last folder, open_clip's at the end of the file's name.
    """
    parts = url.split("/")
    if "openaipublic" in url:
        digits = parts[-2]
    elif "mlfoundations" in url:
        digits = parts[-1].rpartition(".")[0].rpartition("-")[2]
    else:
        return ""
    is_hash = len(digits) >= MIN_HASH_DIGITS and set(digits) <= set("0123456789abcdef")
    return digits if is_hash else ""
