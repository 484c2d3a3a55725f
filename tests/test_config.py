"""The configuration: layers in order, errors that name key, value and source."""

from __future__ import annotations

from pathlib import Path

import pytest

from refiner_cli.config import Config, from_assignments, from_environment, from_file, known_keys, resolve
from refiner_cli.errors import ConfigError


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
        ("method=magic", "--set: method = 'magic' is not valid"),
        ("nonsense", "--set 'nonsense' is not of the form key=value."),
    ],
)
def test_a_bad_setting_is_named_with_its_source(assignment: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve([from_assignments([assignment])])
    assert says in str(raised.value)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[train\n")
    for path in (file, tmp_path / "missing.toml"):
        with pytest.raises(ConfigError, match=path.name):
            from_file(path)


def test_a_stored_configuration_is_read_back() -> None:
    config = resolve([("test", {"train": {"lr": 0.5}, "model": {"num_queries": 0}})])
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_every_key_can_be_set() -> None:
    defaults = Config().model_dump()
    for key in known_keys():
        value = defaults
        for part in key.split("."):
            value = value[part]
        resolve([("test", {key: value})])
