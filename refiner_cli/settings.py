"""Settings from defaults, recipes, files, the environment and the command line, as one configuration.

Defaults, then the dataset's recipe, then the model that a training starts from (``--init``), then ``--config
FILE.toml``, then ``REFINER_<SECTION>__<KEY>`` environment variables, then flags and ``--set
section.key=value``; later sources win. An unknown key is an
error that names the nearest known one, and every error says where the value came from.
"""

from __future__ import annotations

import difflib
import tomllib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from refiner_cli.config import EXCLUSIVE_KEYS, SECTIONS, Config, flatten, known_fields, known_keys
from refiner_cli.errors import ConfigError, OptionError
from refiner_cli.plugins import method_names
from refiner_cli.printable import json_text

PREFIX = "REFINER_"  # of environment variables
Layer = tuple[str, dict[str, Any]]  # where the values came from, and the nested values

# Former keys and what they are called now; only for the hint of an error.
RENAMED_KEYS = {
    "model.adapter_width": "model.adapter_dim",
    "model.queries": "model.queries_per_role",
    "model.fusion": "model.image_to_text",
    "model.fusion_width": "model.image_to_text_dim",
    "model.context": "model.prompt_init",
    "model.learn_words": "model.learn_primitives",
    "model.word_dropout": "model.primitive_dropout",
    "model.word_share": "calibration.wise_ft_alpha",
    "model.wise_ft_alpha": "calibration.wise_ft_alpha",
    "model.grids": "calibration.tta_shifts",
    "model.tta_shifts": "calibration.tta_shifts",
    "model.hubs": "calibration.hubness_strength",
    "model.hubness_correction": "calibration.hubness_strength",
    "train.batch": "train.batch_size",
    "train.clip": "train.max_grad_norm",
    "train.text_chunk": "train.text_chunk_size",
    "train.grad_checkpoint": "train.gradient_checkpointing",
    "train.cache": "train.cached_views",
    "train.workers": "train.num_workers",
    "train.save_minutes": "train.checkpoint_minutes",
    "train.val_epochs": "train.eval_every",
    "train.max_skipped": "train.max_nonfinite_steps",
}


def resolve(layers: Iterable[Layer], *bases: Layer | None) -> Config:
    """The configuration of some layers; see :func:`resolve_with_sources`."""
    return resolve_with_sources(layers, *bases)[0]


def resolve_with_sources(layers: Iterable[Layer], *bases: Layer | None) -> tuple[Config, dict[str, str]]:
    """Merge layers, later ones winning, and validate; also where each key that is not a default comes from.

    Args:
        bases: the first layers (recipes and the like), as far as there are any. They may hold ``[model]``
            settings of several methods; those that the chosen method does not have are ignored, and so is a
            setting that a later layer excludes.

    Raises:
        ConfigError: an unknown key or a wrong value; the message names key, value and source.
    """
    below = [base for base in bases if base]
    flat = [(source, dict(flatten(values))) for source, values in [*below, *layers]]
    method = chosen_method(flat)
    fields = known_fields(method if method in method_names() else "refiner")
    for number, (source, values) in enumerate(flat[: len(below)]):
        usable = {key: v for key, v in values.items() if key in fields or not key.startswith("model.")}
        flat[number] = (source, usable)
    merged: dict[str, Any] = {}  # by dotted key
    origin: dict[str, str] = {}
    layer: dict[str, int] = {}  # which one each value comes from
    for number, (source, values) in enumerate(flat):
        for key, value in values.items():
            check_key(key, source, method, fields)
            merged[key], origin[key], layer[key] = parse_value(value, fields[key]), source, number
    for pair in EXCLUSIVE_KEYS:
        if all(key in merged and merged[key] != fields[key].default for key in pair):
            earlier, later = sorted(pair, key=layer.__getitem__)
            if layer[earlier] < min(layer[later], len(below)):
                del merged[earlier], origin[earlier]
    try:
        return Config.model_validate(nested(merged)), origin
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(part for part in first["loc"] if isinstance(part, str))  # without places in lists
        empty = first["type"] == "too_short"  # pydantic's words for it are Python's
        message = "the list is empty" if empty else first["msg"].removeprefix("Value error, ")
        if key in SECTIONS:
            raise _contradiction(message, flat) from None
        raise setting_error(origin.get(key, "configuration"))(
            f"{origin.get(key, 'configuration')}: {key} = {first['input']!r} is not valid: "
            f"{message[:1].lower()}{message[1:]}."
        ) from None


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of values by dotted key; the inverse of :func:`~refiner_cli.config.flatten`."""
    tables: dict[str, Any] = {}
    for key, value in values.items():
        *sections, leaf = key.split(".")
        place = tables
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    return tables


def _contradiction(message: str, layers: Sequence[Layer]) -> ConfigError:
    """The error for settings that exclude each other, which the message names; the last one is at fault."""
    given = {key: (source, value) for source, values in layers for key, value in values.items()}
    named = {key: found for key, found in given.items() if key in message}
    last = next(
        (source for source, values in reversed(layers) if named.keys() & values.keys()), "configuration"
    )
    said = ", ".join(f"{key} is {value} ({source})" for key, (source, value) in named.items())
    return setting_error(last)(f"{last}: {message}; {said}.")


def chosen_method(layers: Sequence[Layer]) -> str:
    """The method that the last layer with one names; refiner where none does."""
    return next((str(values["method"]) for _, values in reversed(layers) if "method" in values), "refiner")


def explicit_values(layers: Iterable[Layer]) -> dict[str, tuple[Any, str]]:
    """Value and source of every key that some layers give, later ones winning; without defaults.

    A key of any method is known. Raises ConfigError for an unknown one.
    """
    fields = {key: field for name in method_names() for key, field in fields_of(name).items()}
    found: dict[str, tuple[Any, str]] = {}
    for source, values in layers:
        for key, value in flatten(values):
            check_key(key, source, "refiner", fields)
            found[key] = (parse_value(value, fields[key]), source)
    return found


def fields_of(method: str) -> dict[str, Any]:
    """The fields with this method; none where its package cannot be imported: others can be used."""
    try:
        return known_fields(method)
    except ConfigError:
        return {}


def parse_value(value: Any, field: Any) -> Any:
    """A value as the field wants it: text is read (:func:`parse_text`), and true is no number."""
    if isinstance(value, list):
        return [parse_value(one, field) for one in value]
    if isinstance(value, bool) and value_kinds(field.annotation).isdisjoint({bool, str}):
        return toml_text(value)  # which validation names; pydantic would take it for 1 or 0
    return parse_text(value, field) if isinstance(value, str) else value


def parse_text(text: str, field: Any) -> Any:
    """A value given as text (environment, ``--set``), as the field wants it.

    Text that a field cannot hold is returned as it is, so that validation names it.
    """
    kinds = value_kinds(field.annotation)
    if str in kinds:
        return text
    literal = tomllib_value(text)
    return literal if type(literal) in kinds else text


def value_kinds(annotation: Any) -> set[type]:
    """The types of value that an annotation allows: a Literal those of its members, a union all of its."""
    origin = get_origin(annotation)
    if origin is Literal:
        return {type(value) for value in get_args(annotation)}
    if origin in {Union, types.UnionType}:
        return set().union(*(value_kinds(part) for part in get_args(annotation)))
    if origin is Annotated:
        return value_kinds(get_args(annotation)[0])
    kind = origin or annotation
    if kind is tuple:  # a list of candidates, or one of them
        return {list} | value_kinds(get_args(annotation)[0])
    return {int, float} if kind is float else {kind}


def toml_text(value: Any) -> str:
    """A value as a TOML file, the environment and ``--set`` take it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_text, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return json_text(value) if isinstance(value, str) else repr(value)


def without_quotes(text: str) -> str:
    """What a string of TOML says; any other text as it is."""
    value = tomllib_value(text)
    return value if isinstance(value, str) else text


def tomllib_value(text: str) -> Any:
    """What a TOML file would say with this text as a value; None if it is not one."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return None


def setting_error(source: str) -> type[ConfigError]:
    """The class of an error in what a source says: an option is wrong usage, a file a bad configuration."""
    return OptionError if source.startswith("--") else ConfigError


def check_key(key: str, source: str, method: str, keys: Iterable[str]) -> None:
    """Raise ConfigError for a key that the schema does not have."""
    keys = list(keys)
    if key in keys:
        return
    wrong = setting_error(source)
    new = RENAMED_KEYS.get(key)
    if new is not None:
        raise wrong(f"{source}: unknown key '{key}'.", hint=f"It is now called '{new}'.")
    others = [name for name in method_names() if name != method and key.startswith("model.")]
    owners = [name for name in others if key in fields_of(name)]
    if owners:
        raise wrong(
            f"{source}: the method {method} has no setting '{key}'.",
            hint=f"It is a setting of {', '.join(owners)}.",
        )
    leaves = {known.rsplit(".", 1)[-1]: known for known in keys}
    near = difflib.get_close_matches(key, keys, 1) or [
        leaves[leaf] for leaf in difflib.get_close_matches(key.rsplit(".", 1)[-1], leaves, 1)
    ]
    hint = f"Did you mean '{near[0]}'?" if near else "'refiner guide configuration' lists the keys."
    raise wrong(f"{source}: unknown key '{key}'.", hint=hint)


def from_file(file: Path) -> Layer:
    """One layer from a TOML file."""
    try:
        return str(file), tomllib.loads(file.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"The config file {file} does not exist.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"The config file {file} is not valid TOML ({error}).") from None


def from_environment(
    environment: Mapping[str, str], note: Callable[[str], None] = lambda _line: None
) -> Layer:
    """One layer from ``REFINER_SEED``, ``REFINER_TRAIN__LR`` and the like.

    Other programs use the prefix too (Kubernetes sets REFINER_SERVICE_HOST for a service called
    refiner), so a name that is neither a top-level key nor of a known section is ignored.

    Args:
        note: receives a line about every ignored name that looks like a misspelt one.
    """
    top = [name for name in Config.model_fields if name not in SECTIONS]
    values: dict[str, Any] = {}
    for name, text in environment.items():
        if not name.startswith(PREFIX) or name == "REFINER_HOME":
            continue
        key = name.removeprefix(PREFIX).lower().replace("__", ".")
        section, dot, _ = key.partition(".")
        if key in top or (dot and section in SECTIONS):
            values[key] = without_quotes(text)
        elif near := difflib.get_close_matches(key, [*top, *known_keys()], 1, cutoff=0.75):
            meant = PREFIX + near[0].upper().replace(".", "__")
            note(f"The environment variable {name} is ignored; did you mean {meant}?")
    return "environment", values


def from_assignments(assignments: Iterable[str]) -> Layer:
    """One layer from ``key=value`` texts, as ``--set`` takes them; a string may stand in quotes."""
    values: dict[str, Any] = {}
    for text in assignments:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise OptionError(f"--set {text!r} is not of the form key=value.")
        values[key.strip()] = without_quotes(value.strip())
    return "--set", values
