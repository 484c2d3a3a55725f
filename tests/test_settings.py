"""The configuration: layers in order, errors that name key, value and source, every key as text."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest

from refiner_cli.config import Config, flatten, known_fields, known_keys
from refiner_cli.errors import ConfigError, OptionError
from refiner_cli.plugins import BUILT_IN_METHODS
from refiner_cli.settings import (
    RENAMED_KEYS,
    from_assignments,
    from_environment,
    from_file,
    parse_text,
    resolve,
    toml_text,
)


def test_the_later_layer_wins(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("seed = 1\n[train]\nlr = 0.1\nepochs = 3\n")
    environment = from_environment({"REFINER_TRAIN__LR": "0.2", "REFINER_HOME": "/x", "HOME": "/y"})
    config = resolve([from_file(file), environment, from_assignments(["train.epochs=4"])])
    assert (config.seed, config.train.lr, config.train.epochs) == (1, 0.2, 4)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("train.maxsteps=3", "--set: unknown key 'train.maxsteps'. Did you mean 'train.max_steps'?"),
        ("lr=3", "Did you mean 'train.lr'?"),
        ("train.lr=-1", "--set: train.lr = -1 is not valid: input should be greater than 0."),
        ("train.lr=fast", "--set: train.lr = 'fast' is not valid: input should be a valid number"),
        (
            "calibration.tta_shifts=3",
            "--set: calibration.tta_shifts = 3 is not valid: input should be 1, 2 or 4.",
        ),
        (
            "calibration.wise_ft_alpha=[1.0, 2.0]",
            "--set: calibration.wise_ft_alpha = 2.0 is not valid: input should be less than or equal to 1.",
        ),
        (
            "calibration.state_weight=[]",
            "--set: calibration.state_weight = [] is not valid: the list is empty.",
        ),
        ("method=magic", "--set: method = 'magic' is not valid: the methods are refiner, clip, coop, csp"),
        ("nonsense", "--set 'nonsense' is not of the form key=value."),
        ("zzz=1", "unknown key 'zzz'. 'refiner guide configuration' lists the keys."),
        ("train=1", "unknown key 'train'."),
        ("model.adapters.x=1", "unknown key 'model.adapters.x'."),
    ],
)
def test_a_bad_setting_is_named_with_its_source(assignment: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve([from_assignments([assignment])])
    assert says in str(raised.value)


def test_settings_that_exclude_each_other_are_named_with_their_sources() -> None:
    file = ("some.toml", {"train": {"val_per_epoch": 3, "epochs": 2}})
    with pytest.raises(OptionError) as raised:
        resolve([file, from_assignments(["train.eval_every=2"])])
    assert str(raised.value) == (
        "--set: train.val_per_epoch above 1 needs train.eval_every=1; "
        "train.val_per_epoch is 3 (some.toml), train.eval_every is 2 (--set)."
    )
    with pytest.raises(ConfigError, match=r"^environment: train\.val_per_epoch") as raised:
        resolve([file, from_environment({"REFINER_TRAIN__EVAL_EVERY": "2"})])
    assert raised.value.exit_code == 3
    # A recipe gives way: nobody chose its value.
    train = resolve([from_assignments(["train.eval_every=2"])], file).train
    assert (train.eval_every, train.val_per_epoch, train.epochs) == (2, 1, 2)


def some_values(annotation: Any, dice: random.Random) -> Iterator[Any]:
    """Values that a type allows, whatever the bounds of the setting."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from some_values(parts[0], dice)
    elif origin is Literal:
        yield from parts
    elif origin is tuple:
        single = list(some_values(parts[0], dice))
        yield from ([value] for value in single)
        yield single
    elif annotation is bool:
        yield from (True, False)
    elif annotation is float:
        yield from (0.0, 1.0, 1e-05, 1e16, dice.random(), dice.random() * 1e-9, dice.random() * 1e12)
    elif annotation is int:
        yield from (0, 1, 16, 2**63 - 1)
    else:
        yield from (
            "a",
            "my run",
            'a "b"',
            "'",
            '"',
            "#1",
            "C:\\new",
            "\u202eb",
            "é",
            "a\tb\nc",
            "true",
            " x ",
        )


@pytest.mark.parametrize("method", BUILT_IN_METHODS)
def test_every_setting_is_read_in_the_form_in_which_it_is_shown(method: str) -> None:
    dice = random.Random(0)
    for key, field in known_fields(method).items():
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        for value in (default, *some_values(field.annotation, dice)):
            line = f"{key} = {toml_text(value)}  # a source"
            given = from_assignments([line])[1][key]
            variable = f"REFINER_{key.upper().replace('.', '__')}"
            exported = from_environment({variable: toml_text(value)})[1][key]
            assert parse_text(given, field) == parse_text(exported, field) == value
            assert dict(flatten(tomllib.loads(line))) == {key: value}


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_an_old_key_is_an_error_that_names_the_new_one(old: str, new: str) -> None:
    assert new in known_keys("refiner")
    with pytest.raises(ConfigError) as raised:
        resolve([from_assignments([f"{old}=1"])])
    assert f"unknown key '{old}'. It is now called '{new}'." in str(raised.value)


def test_a_setting_of_another_method_is_named_as_such() -> None:
    with pytest.raises(
        ConfigError,
        match=r"the method csp has no setting 'model\.adapter_dim'\. It is a setting of refiner, troika, "
        r"troika-shared\.",
    ):
        resolve([from_assignments(["method=csp", "model.adapter_dim=8"])])


def test_a_recipe_may_hold_settings_of_other_methods() -> None:
    recipe = ("a.toml", {"model": {"adapter_dim": 8, "primitive_dropout": 0.1}, "train": {"epochs": 3}})
    config = resolve([from_assignments(["method=csp"])], recipe)
    assert (config.method, config.model.primitive_dropout, config.train.epochs) == ("csp", 0.1, 3)
    with pytest.raises(ConfigError, match=r"unknown key 'train\.epoch'"):
        resolve([], ("a.toml", {"train": {"epoch": 3}}))


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_bytes(b"\xef\xbb\xbf[train]\r\nlr = 0.5\r\n")
    assert resolve([from_file(file)]).train.lr == 0.5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train.epochs = true", "train.epochs = 'true' is not valid: input should be a valid integer"),
        ("train.lr = false", "train.lr = 'false' is not valid: input should be a valid number"),
        ("calibration.state_weight = [0.5, true]", "calibration.state_weight = 'true' is not valid"),
        ("train.lr = {}", "train.lr = {} is not valid"),
        ("[trian]", "unknown key 'trian'"),
    ],
)
def test_what_is_no_value_of_a_setting_is_an_error(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        resolve([from_file(file)])
    assert says in str(raised.value)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[train\n")
    for path in (file, tmp_path / "missing.toml"):
        with pytest.raises(ConfigError, match=path.name):
            from_file(path)


@pytest.mark.parametrize("method", BUILT_IN_METHODS)
def test_a_stored_configuration_is_read_back(method: str) -> None:
    config = resolve([("test", {"method": method, "train": {"lr": 0.5}, "calibration": {"tta_shifts": 2}})])
    again = Config.model_validate_json(config.model_dump_json())
    assert again == config
    assert type(again.model) is type(config.model)


def other_value(field: Any) -> Any:
    """A valid value that is not the default."""
    kind = field.annotation
    if get_origin(kind) is tuple:  # a list of candidates
        return field.default[-1:]
    if get_origin(kind) is not None:
        return next(value for value in get_args(kind) if value != field.default)
    if kind is bool:
        return not field.default
    if kind is str:
        return f"{field.default or ''}x"
    limits = [getattr(m, name) for m in field.metadata for name in ("le", "lt") if hasattr(m, name)]
    return type(field.default)(limits[0] / 2 if limits else field.default + 1)


def as_toml(value: Any) -> str:
    if isinstance(value, tuple):
        return str(list(value))
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


@pytest.mark.parametrize("method", BUILT_IN_METHODS)
def test_every_key_can_be_set_as_text_from_every_source(method: str, tmp_path: Path) -> None:
    fixed = ("method", {"method": method})
    for key, field in known_fields(method).items():
        if key == "method":
            continue
        value = other_value(field)
        name = f"REFINER_{key.upper().replace('.', '__')}"
        file = tmp_path / "config.toml"
        section, _, leaf = key.rpartition(".")
        file.write_text((f"[{section}]\n" if section else "") + f"{leaf} = {as_toml(value)}\n")
        assert tomllib.loads(file.read_text())
        text = value if isinstance(value, str) else as_toml(value)
        for layer in (from_environment({name: text}), from_assignments([f"{key}={text}"]), from_file(file)):
            found: Any = resolve([fixed, layer])
            for part in key.split("."):
                found = getattr(found, part)
            assert found == value, (key, layer[0])


def test_environment_variables_of_others_are_ignored_and_near_misses_noted() -> None:
    notes: list[str] = []
    others = {
        "REFINER_SERVICE_HOST": "10.0.0.7",
        "REFINER_SERVICE_PORT": "80",
        "REFINER_PORT": "tcp://10.0.0.7:80",
        "REFINER_PORT_80_TCP_ADDR": "10.0.0.7",
        "REFINER_UI__COLOUR": "red",
        "REFINER_HOME": "/x",
    }
    assert from_environment(others, notes.append) == ("environment", {})
    assert notes == []
    _, values = from_environment({"REFINER_TRAIN_LR": "1", "REFINER_SEDE": "2", **others}, notes.append)
    assert values == {}
    assert notes == [
        "The environment variable REFINER_TRAIN_LR is ignored; did you mean REFINER_TRAIN__LR?",
        "The environment variable REFINER_SEDE is ignored; did you mean REFINER_SEED?",
    ]
    with pytest.raises(ConfigError, match=r"environment: unknown key 'train\.lrr'"):
        resolve([from_environment({"REFINER_TRAIN__LRR": "1"})])
