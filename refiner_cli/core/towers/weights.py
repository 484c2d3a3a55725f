"""Where a backbone's weights come from: a tag, a file, a folder, a repository, or a random seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from torch import nn

from refiner_cli.core.towers import tiny
from refiner_cli.core.towers.architectures import WEIGHTS_FILES, Architecture
from refiner_cli.core.towers.hub_access import failure, hub_access
from refiner_cli.core.towers.sidecar import read_sidecar
from refiner_cli.core.towers.weight_files import (
    StateDict,
    is_big_vision,
    load_big_vision,
    load_tensors,
    read_state_dict,
)
from refiner_cli.core.towers.weights_profile import WeightsProfile, file_profile, tag_profile
from refiner_cli.errors import ConfigError, FetchError

RANDOM_WEIGHTS = "none"
BUILT_IN = "built-in"
OWN = "own"  # those that the name stands for itself (hf-hub:, local-dir:)
UNKNOWN = WeightsProfile()
CONFIG_DEFAULT = "openai"  # the configuration's default, which names with weights of their own ignore


@dataclass(frozen=True)
class WeightsSource:
    """Chosen weights, not downloaded or loaded yet."""

    pretrained: str  # as the description of the backbone stores it: a file by its complete path
    profile: WeightsProfile = UNKNOWN
    file: Path | None = None
    state: StateDict | None = None  # the content of the file, if it was read already
    tag: dict[str, Any] | None = None  # open_clip's entry
    repository: str = ""  # of the Hugging Face hub
    notes: tuple[str, ...] = ()  # how the profile was found

    def fetch(self, name: str) -> Path:
        """The weights file of the backbone ``name``, downloaded if need be. Raises FetchError."""
        if self.file is not None:
            return self.file
        return download_weights(self.tag, self.repository, f"{self.pretrained} of {name}")

    def load_into(self, clip: nn.Module, name: str) -> list[str]:
        """Download, read and load the weights; returns sentences on what was adapted.

        Raises:
            FetchError: the weights cannot be downloaded.
            ModelFileError: the file cannot be read, or does not fit.
        """
        if self.pretrained == RANDOM_WEIGHTS:
            return []
        file, state = self.fetch(name), self.state
        if is_big_vision(file):
            load_big_vision(clip, file)
            return []
        if state is None:
            state, _ = read_state_dict(file)
        return load_tensors(clip, state, f"The weights {file}", name)


def find_weights(
    architecture: Architecture, pretrained: str, known: WeightsProfile = UNKNOWN
) -> WeightsSource:
    """The weights that ``pretrained`` names, for an architecture. Nothing is downloaded yet.

    Args:
        pretrained: ``none``, an open_clip tag, a weights file, or ``TAG=FILE``.
        known: what the weights were trained with, as far as that is known.

    Raises:
        ConfigError: there is no such tag or file, or it stays open what a file was trained with.
        ModelFileError: a file cannot be read.
    """
    stated = known.completed_by(WeightsProfile(None, architecture.preprocess))
    if pretrained == RANDOM_WEIGHTS:
        return WeightsSource(pretrained, stated)
    if Path(pretrained).is_file():
        return source_from_file(architecture, Path(pretrained), known)
    if architecture.name == tiny.NAME and pretrained in {"", BUILT_IN, CONFIG_DEFAULT}:
        return WeightsSource(BUILT_IN, file=tiny.weights_path(), state=tiny.load_compact())
    if architecture.has_own_weights and pretrained in {"", OWN, CONFIG_DEFAULT}:
        file = None if architecture.folder is None else find_weights_file(architecture.folder)
        return WeightsSource(OWN, stated, file, repository=architecture.repository)
    return source_from_tag(architecture, pretrained)


def source_from_tag(architecture: Architecture, pretrained: str) -> WeightsSource:
    """The weights of ``TAG`` or ``TAG=FILE``. Raises ConfigError if there is no such tag or file."""
    name = architecture.name
    tag, equals, file = pretrained.partition("=")
    entry = open_clip.get_pretrained_cfg(name, tag)
    if not entry:
        problem = "is not a tag" if equals else "is neither a weights file nor a tag"
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ConfigError(f"{tag!r} {problem} of {name}.", hint=f"Its tags: {tags}.")
    if not equals:
        return WeightsSource(pretrained, tag_profile(name, tag), tag=entry)
    if not Path(file).is_file():
        raise ConfigError(f"The weights file {file} does not exist, or is not a file.")
    return WeightsSource(f"{tag}={Path(file).absolute()}", tag_profile(name, tag), Path(file))


def source_from_file(architecture: Architecture, file: Path, known: WeightsProfile) -> WeightsSource:
    """A weights file without a tag."""
    pretrained = str(file.absolute())
    if architecture.name == tiny.NAME and tiny.is_compact(file):
        return WeightsSource(pretrained, file=file, state=tiny.load_compact(file))
    state, from_openai = (None, False) if is_big_vision(file) else read_state_dict(file)
    beside, where = read_sidecar(file, architecture.config)
    known = known.completed_by(beside).completed_by(WeightsProfile(None, architecture.preprocess))
    profile, how = file_profile(architecture.name, file, known, from_openai=from_openai)
    return WeightsSource(pretrained, profile, file, state, notes=tuple(note for note in (where, how) if note))


def find_weights_file(folder: Path) -> Path:
    """The weights file of a model folder. Raises ConfigError if there is none, or no telling which."""
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    others = [file for suffix in ("safetensors", "bin", "pt", "pth") for file in folder.glob(f"*.{suffix}")]
    if len(others) == 1:
        return others[0]
    raise ConfigError(
        f"The folder {folder} holds {'several weights files' if others else 'no weights file'}.",
        hint=f"Name it {WEIGHTS_FILES[0]}, or pass --pretrained FILE.",
    )


def download_weights(tag: dict[str, Any] | None, repository: str, what: str) -> Path:
    """The weights of a tag or a repository, downloaded once into the usual cache. Raises FetchError."""
    with hub_access() as host:
        try:
            if tag is None:
                return Path(open_clip.pretrained.download_pretrained_from_hf(repository))
            return Path(open_clip.download_pretrained(tag))
        except Exception as error:  # noqa: BLE001 - the hub's client raises a dozen unrelated kinds
            raise FetchError(
                f"The weights {what} cannot be downloaded ({failure(error, host)}).",
                hint="Check the network, or download the file elsewhere and name it: --pretrained TAG=FILE "
                "of 'refiner train', or NAME:TAG=FILE as a MODEL.",
            ) from None
