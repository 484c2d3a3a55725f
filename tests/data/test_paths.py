from __future__ import annotations

import pwd
from pathlib import Path
from typing import Any

import pytest

from refiner_cli.data.paths import Home, find_dataset, home
from refiner_cli.errors import ConfigError, DatasetError

NAMES = ["mit-states", "demo"]


def find(text: str, place: Home) -> Path:
    return find_dataset(text, lambda: place, lambda: NAMES)


def test_refiner_home_moves_everything(tmp_path: Path) -> None:
    assert home({"REFINER_HOME": str(tmp_path)}).datasets == tmp_path / "datasets"
    assert home({"REFINER_HOME": "~/x"}).root == Path.home() / "x"


def test_else_it_is_the_cache_folder_of_the_system() -> None:
    assert home({}) == home({"REFINER_HOME": " "})
    assert home({}).root.name == "refiner" or "refiner" in home({}).root.parts


@pytest.mark.parametrize("chosen", ["", "~", "~/x", "~nobody-of-this-name/x"])
def test_without_a_home_directory_it_must_be_set(monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: (_ for _ in ()).throw(KeyError("no such user")))
    with pytest.raises(ConfigError, match="no home directory") as caught:
        home({"REFINER_HOME": chosen})
    assert "REFINER_HOME" in caught.value.hint
    assert home({"REFINER_HOME": "/data"}).root == Path("/data")


def test_a_folder_needs_neither_home_nor_catalogue(tmp_path: Path) -> None:
    def fail() -> Any:
        raise ConfigError("there is none")

    assert find_dataset(f"{tmp_path}", fail, fail) == tmp_path


def test_a_catalogue_name_is_found_in_the_store(tmp_path: Path) -> None:
    (tmp_path / "datasets/demo").mkdir(parents=True)
    assert find("demo", Home(tmp_path)) == tmp_path / "datasets/demo"


def test_a_folder_is_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find("mine", Home(tmp_path)) == Path("mine")
    assert find(str(tmp_path / "mine"), Home(tmp_path)) == tmp_path / "mine"


def test_a_folder_called_as_a_catalogue_name_needs_a_path_unless_it_is_a_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match="demo is not downloaded"):
        find("demo", Home(tmp_path / "home"))
    assert find("./demo", Home(tmp_path / "home")) == Path("demo")
    (tmp_path / "demo/compositional-split-natural").mkdir()
    assert find("demo", Home(tmp_path / "home")) == Path("demo")


def test_what_is_not_downloaded_says_how(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        find("mit-states", Home(tmp_path))
    assert caught.value.hint == "Run 'refiner download mit-states'."


def test_what_nobody_knows_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="Did you mean 'mit-states'"):
        find("mitstates", Home(tmp_path))
    with pytest.raises(DatasetError, match="The catalogue has demo, mit-states"):
        find("no/such/folder", Home(tmp_path))
