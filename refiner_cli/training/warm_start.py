"""Warm start: a training begins with what fits of a model that was trained on other data.

A learned tensor fits if the new model has one of the same name and shape. Tensors with a row per state or
object are taken over word by word; a word that the other model does not know keeps the backbone's own
embedding. Adapters belong to the tower's last blocks, so they are counted from the last one.

The learned part of the other model is copied into the run, so that the run can be resumed without it::

    init/config.json, init/model.safetensors    a model directory without backbone
    init/taken.json                             what was taken over of it
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refiner_cli.core.model_io.checkpoint import (
    TRAINED,
    WEIGHTS_FILE,
    learned_tensors,
    read_config,
    read_stored,
    read_tensors,
    require_numbers,
)
from refiner_cli.core.model_io.schema import CONFIG
from refiner_cli.core.model_io.tensor_files import save_tensors
from refiner_cli.core.models.adapters import BlockAdapter
from refiner_cli.core.models.base import Model
from refiner_cli.core.towers.architectures import find_architecture
from refiner_cli.core.towers.weights import RANDOM_WEIGHTS, find_weights
from refiner_cli.data.labels import LabelSpace, NameIndex
from refiner_cli.errors import ConfigError, FetchError
from refiner_cli.files import atomic_folder, write_json
from refiner_cli.settings import Layer
from refiner_cli.training.run_dir import INIT

TAKEN = "taken.json"
FITTED = "hubness."  # estimated after training, from the images of the data
SHOWN_WORDS = 12
MANY = 4  # tensors of one part that the log no longer names one by one


@dataclass(frozen=True)
class WordsTaken:
    """The words of one role."""

    taken: tuple[str, ...]
    new: tuple[str, ...]  # with the backbone's own embedding
    left: tuple[str, ...]  # the other model's, which the data do not have


@dataclass(frozen=True)
class TakenOver:
    """What a model took over."""

    source: str
    tensors: tuple[str, ...]  # names in the new model
    new: tuple[str, ...]  # tensors that keep their initial values
    left: dict[str, str]  # names in the other model, and why
    words: dict[str, WordsTaken]  # by role

    def lines(self) -> Iterator[str]:
        """Sentences for the log."""
        if not self.tensors:
            yield f"nothing was taken over from {self.source}: no learned part of it fits"
        else:
            yield f"taken over from {self.source}: {', '.join(parts_of(self.tensors))}"
        for role, words in self.words.items():
            known = len(words.taken) + len(words.new)
            yield (
                f"{role}s: {len(words.taken)} of {known} taken over by name, {len(words.new)} new "
                f"({shorten(words.new)}), {len(words.left)} left ({shorten(words.left)})"
            )
        if self.new:
            yield f"new, at initial values: {', '.join(parts_of(self.new))}"
        for reason in dict.fromkeys(self.left.values()):
            names = [name for name, why in self.left.items() if why == reason]
            yield f"left, {reason}: {', '.join(parts_of(names))}"


def initial_layer(text: str, folder: Path) -> Layer:
    """The settings of a model that a training starts from: its method, its parts, its backbone.

    Args:
        text: as the user gave it.
        folder: the model directory.

    Raises:
        ModelFileError: it is damaged.
    """
    _, stored, settings = read_stored(folder)
    name, pretrained = obtainable_backbone(folder)
    values = {
        "method": stored.method, "backbone": name, "pretrained": pretrained, "model": settings.model_dump(),
    }  # fmt: skip
    return f"--init {text}", values


def obtainable_backbone(folder: Path) -> tuple[str, str]:
    """Name and weights of a stored model's backbone: by name where they can be had, else its own copy."""
    stored = read_stored(folder)[1].backbone
    if stored.included:
        try:
            if stored.pretrained == RANDOM_WEIGHTS:
                raise ConfigError("drawn from a seed")
            find_weights(find_architecture(stored.name), stored.pretrained).fetch(stored.name)
        except (ConfigError, FetchError):
            return stored.name, str((folder / WEIGHTS_FILE).resolve())
    return stored.name, stored.pretrained


def store_initial(run: Path, folder: Path) -> None:
    """Copy the learned part of a model into a run. Raises ModelFileError if it is damaged."""
    config, tensors = read_config(folder), read_tensors(folder)
    learned = {name: value.contiguous() for name, value in tensors.items() if name.startswith(TRAINED)}
    require_numbers(learned, folder / WEIGHTS_FILE)
    with atomic_folder(run / INIT) as part:
        save_tensors(learned, part / WEIGHTS_FILE)
        write_json(part / CONFIG, config | {"backbone": config["backbone"] | {"included": False}})


def take_over(run: Path, model: Model, source: str, pretrained: str) -> TakenOver:
    """Give a new model what fits of the one that was copied into its run, and note there what that is.

    Args:
        source: what the user called the other model.
        pretrained: the backbone's weights, as the configuration names them.

    Raises:
        ConfigError: the backbones differ.
        ModelFileError: the copy is damaged.
    """
    folder = run / INIT
    config, stored, _ = read_stored(folder)
    own_copy = Path(pretrained).name == WEIGHTS_FILE  # rounded, if it was exported in half precision
    if not own_copy and stored.backbone.fingerprint != model.backbone.fingerprint():
        spec = model.backbone.spec
        raise ConfigError(
            f"The backbone {spec.name} ({spec.pretrained}) is not that of {source}, which is "
            f"{stored.backbone.name} ({stored.backbone.pretrained}): their weights differ.",
            hint="Leave --backbone and --pretrained out, or start from a model on that backbone.",
        )
    taken = copy_tensors(
        model, learned_tensors(read_tensors(folder)), LabelSpace.from_json(config["labels"]), source
    )
    write_json(folder / TAKEN, asdict(taken))
    return taken


def read_taken(run: Path) -> dict[str, Any] | None:
    """What a run took over, or None if it started from nothing."""
    file = run / INIT / TAKEN
    return dict(json.loads(file.read_bytes())) if file.is_file() else None


@torch.no_grad()
def copy_tensors(model: Model, saved: Mapping[str, Tensor], space: LabelSpace, source: str) -> TakenOver:
    """Copy what fits of another model's learned tensors.

    Args:
        saved: the other model's learned tensors by name.
        space: the other model's states and objects.
    """
    wanted = {name: value for name, value in model.saved_tensors().items() if not name.startswith(FITTED)}
    tables = model.label_tables()
    rename = adapter_renaming(model, saved)
    found = {rename(name): (name, value) for name, value in saved.items()}
    words: dict[str, WordsTaken] = {}
    taken: list[str] = []
    left = {name: "fitted anew" for name in saved if name.startswith(FITTED)}
    for name, parameter in wanted.items():
        original, value = found.get(name, ("", None))
        if value is None:
            continue
        role = tables.get(name)
        if role is not None and value.ndim == parameter.ndim and value.shape[1:] == parameter.shape[1:]:
            theirs, ours = getattr(space, f"{role}s"), getattr(model.space, f"{role}s")
            words[role] = copy_rows(parameter, value, ours, theirs)
            if words[role].taken:
                taken.append(name)
        elif role is None and value.shape == parameter.shape:
            parameter.copy_(value)
            taken.append(name)
        else:
            left[original] = f"its shape is {list(value.shape)} and {list(parameter.shape)} is needed"
    for new_name, (name, _) in found.items():
        if new_name not in wanted and name not in left:
            left[name] = "the new model has no such part"
    new = tuple(name for name in wanted if name not in taken)
    return TakenOver(source, tuple(taken), new, left, words)


def copy_rows(parameter: Tensor, value: Tensor, ours: Sequence[str], theirs: Sequence[str]) -> WordsTaken:
    """Copy the rows of the words that both have, under any usual spelling."""
    known, row = NameIndex(theirs), {name: i for i, name in enumerate(theirs)}
    taken, new, used = [], [], set()
    for i, name in enumerate(ours):
        other = known.find(name)
        if other is None:
            new.append(name)
        else:
            parameter[i] = value[row[other]].to(parameter)
            taken.append(name)
            used.add(other)
    return WordsTaken(tuple(taken), tuple(new), tuple(name for name in theirs if name not in used))


def adapter_renaming(model: Model, saved: Mapping[str, Tensor]) -> Callable[[str], str]:
    """How the other model's adapters are called here, where the two have them in differently many blocks."""
    shift: dict[str, int] = {}  # by list of adapters: what is added to the other model's numbers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and isinstance(module[0], BlockAdapter):
            numbers = [
                int(m[1]) for m in (re.match(rf"{re.escape(path)}\.(\d+)\.", name) for name in saved) if m
            ]
            if numbers:
                shift[path] = len(module) - (max(numbers) + 1)

    def rename(name: str) -> str:
        for path, by in shift.items():
            match = re.match(rf"{re.escape(path)}\.(\d+)\.(.+)", name)
            if match:
                return f"{path}.{int(match[1]) + by}.{match[2]}"
        return name

    return rename


def parts_of(names: Sequence[str]) -> list[str]:
    """Tensors by name, those of one part together where they are many."""
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(name.split(".")[0], []).append(name)
    return [
        text
        for part, found in parts.items()
        for text in (found if len(found) < MANY else [f"{part} ({len(found)} tensors)"])
    ]


def shorten(words: Sequence[str]) -> str:
    """Some words, and how many more there are."""
    more = f" and {len(words) - SHOWN_WORDS} more" if len(words) > SHOWN_WORDS else ""
    return (", ".join(words[:SHOWN_WORDS]) or "none") + more
