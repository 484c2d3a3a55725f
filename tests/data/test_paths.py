from __future__ import annotations

from pathlib import Path

import pytest

from refiner_cli.data.paths import Home, find_dataset, home
from refiner_cli.errors import DatasetError

NAMES = ["mit-states", "demo"]


def test_refiner_home_moves_everything(tmp_path: Path) -> None:
    assert home({"REFINER_HOME": str(tmp_path)}).datasets == tmp_path / "datasets"
    assert home({"REFINER_HOME": "~/x"}).root == Path.home() / "x"


def test_else_it_is_the_cache_folder_of_the_system() -> None:
    assert home({}) == home({"REFINER_HOME": " "})
    assert home({}).root.name == "refiner" or "refiner" in home({}).root.parts


def test_a_catalogue_name_is_found_in_the_store(tmp_path: Path) -> None:
    (tmp_path / "datasets/demo").mkdir(parents=True)
    assert find_dataset("demo", Home(tmp_path), NAMES) == tmp_path / "datasets/demo"


def test_a_folder_is_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_dataset("mine", Home(tmp_path), NAMES) == Path("mine")
    assert find_dataset(str(tmp_path / "mine"), Home(tmp_path), NAMES) == tmp_path / "mine"


def test_a_folder_called_as_a_catalogue_name_needs_a_path_unless_it_is_a_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match="demo is not downloaded"):
        find_dataset("demo", Home(tmp_path / "home"), NAMES)
    assert find_dataset("./demo", Home(tmp_path / "home"), NAMES) == Path("demo")
    (tmp_path / "demo/compositional-split-natural").mkdir()
    assert find_dataset("demo", Home(tmp_path / "home"), NAMES) == Path("demo")


def test_what_is_not_downloaded_says_how(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        find_dataset("mit-states", Home(tmp_path), NAMES)
    assert caught.value.hint == "Run 'refiner download mit-states'."


def test_what_nobody_knows_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="Did you mean 'mit-states'"):
        find_dataset("mitstates", Home(tmp_path), NAMES)
    with pytest.raises(DatasetError, match="The catalogue has demo, mit-states"):
        find_dataset("no/such/folder", Home(tmp_path), NAMES)
