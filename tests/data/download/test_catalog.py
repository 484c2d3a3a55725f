from __future__ import annotations

import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import refiner_cli.data.download
from refiner_cli.data.benchmark import read_pairs
from refiner_cli.data.download.catalog import Catalogue
from refiner_cli.data.download.catalog_files import built_in, load_catalogue, parse
from refiner_cli.errors import ConfigError, UsageError
from refiner_cli.plugins import DATASETS_GROUP

ENTRY = """
[sources."clevr.zip"]
urls = ["https://example.org/clevr.zip"]
holds = "clevr/images/*"

[datasets.ao-clevr]
title = "AO-CLEVr"
kind = "benchmark"
sources = ["clevr.zip"]
home = "https://example.org"
licence = "CC BY 4.0"
citation = ["Atzmon: A causal view of compositional zero-shot recognition. NeurIPS 2020"]
expected = { states = 8, objects = 3 }
"""


def test_the_catalogue_is_complete() -> None:
    datasets = built_in().datasets
    assert {"mit-states", "ut-zappos", "c-gqa", "glove", "demo"} <= set(datasets)
    for name, dataset in datasets.items():
        assert dataset.name == name
        assert dataset.citation or dataset.kind == "made"


def test_every_source_is_used() -> None:
    raw = tomllib.loads((Path(refiner_cli.data.download.__file__).parent / "catalog.toml").read_text("utf-8"))
    used = {source.file for dataset in built_in().datasets.values() for source in dataset.sources}
    assert set(raw["sources"]) == used


@pytest.mark.parametrize(("name", "folder"), [("c-gqa", "cgqa"), ("ut-zappos", "ut-zappos")])
def test_the_counts_are_those_of_the_real_pair_lists(splits: Path, name: str, folder: str) -> None:
    expected = built_in().find(name).expected
    train, val, test = (set(read_pairs(splits / folder / f"{s}_pairs.txt")) for s in ("train", "val", "test"))
    assert expected.states == len({s for s, _ in train | val | test})
    assert expected.objects == len({o for _, o in train | val | test})
    assert expected.train_pairs == len(train)
    assert (expected.val_seen_pairs, expected.val_unseen_pairs) == (len(val & train), len(val - train))
    assert (expected.test_seen_pairs, expected.test_unseen_pairs) == (len(test & train), len(test - train))


def test_a_name_that_is_nearly_right_is_suggested() -> None:
    with pytest.raises(UsageError) as caught:
        built_in().find("cgqa")
    assert caught.value.hint == "Did you mean 'c-gqa'?"
    with pytest.raises(UsageError, match="It has mit-states, ut-zappos"):
        built_in().find("imagenet")


def test_datasets_that_can_only_be_fetched_by_hand_are_known() -> None:
    by_hand = {name for name, dataset in built_in().datasets.items() if dataset.by_hand}
    assert "clothing16k" in by_hand
    assert by_hand.isdisjoint({"mit-states", "demo"})


def test_sources_that_several_datasets_need_are_known() -> None:
    datasets = built_in().datasets
    assert "compositional_split_natural.tar.gz" in built_in().shared_sources([datasets["mit-states"]])
    both = [datasets["mit-states"], datasets["ut-zappos"]]
    assert "compositional_split_natural.tar.gz" not in built_in().shared_sources(both)


# --- catalogues of others ---------------------------------------------------------------------------


def test_without_other_catalogues_there_is_ours(tmp_path: Path) -> None:
    assert load_catalogue(tmp_path / "nowhere") == built_in()


def test_a_users_file_adds_datasets(tmp_path: Path) -> None:
    (tmp_path / "catalog.toml").write_text("\ufeff" + ENTRY, "utf-8")  # as Notepad writes it
    found = load_catalogue(tmp_path)
    assert list(found.datasets) == [*built_in().datasets, "ao-clevr"]
    assert found.find("ao-clevr").expected.states == 8
    assert found.origins == {"ao-clevr": str(tmp_path / "catalog.toml")}


def test_a_users_dataset_may_use_our_sources(tmp_path: Path) -> None:
    table = ENTRY[ENTRY.index("[datasets") :].replace('"clevr.zip"', '"ut-zap50k-images.zip"')
    (tmp_path / "catalog.toml").write_text(table)
    assert load_catalogue(tmp_path).find("ao-clevr").sources == built_in().find("ut-zappos").sources[:1]


MISTAKES = {
    "not TOML": ("[datasets", "Expected"),
    "another table": (ENTRY.replace("[datasets.ao", "[dataset.ao"), "dataset: Extra inputs"),
    "an unknown key": (ENTRY.replace("licence", "license"), "datasets.ao-clevr: licence: Field required"),
    "no title": (ENTRY.replace('"AO-CLEVr"', '""'), "title: String should have at least 1"),
    "a name with a slash": (
        ENTRY.replace("datasets.ao-clevr", 'datasets."a/../../b"'),
        "name: String should",
    ),
    "a name in capitals": (ENTRY.replace("datasets.ao-clevr", "datasets.AO"), "name: String should match"),
    "a hidden name": (ENTRY.replace("datasets.ao-clevr", 'datasets.".b"'), "name: String should match"),
    "a name that stands beside datasets": (ENTRY.replace("ao-clevr]", "archives]"), "is reserved"),
    "a device of Windows": (ENTRY.replace("ao-clevr]", "nul]"), "cannot be a file name"),
    "a file elsewhere": (ENTRY.replace("clevr.zip", "../clevr.zip"), "a path that leaves its folder"),
    "an absolute file": (ENTRY.replace('"clevr.zip"', '"/tmp/clevr.zip"'), "an absolute path"),
    "a file in a folder": (ENTRY.replace('"clevr.zip"', '"a/clevr.zip"'), "is not a plain file name"),
    "another protocol": (ENTRY.replace("https:", "file:"), "urls.0: String should match"),
    "a short hash": (ENTRY.replace("holds", 'sha256 = "abc"\nholds'), "sha256: String should match"),
    "a number as text": (ENTRY.replace("states = 8", 'states = "8"'), "states: Input should be a valid int"),
    "a negative number": (ENTRY.replace("states = 8", "states = -8"), "states: Input should be greater"),
    "a source that is missing": (ENTRY.replace('= ["clevr', '= ["other'), "'other.zip' is not defined"),
    "sources that are no list": (ENTRY.replace('["clevr.zip"]', "3"), "sources is not a list"),
    "no sources": (ENTRY.replace('["clevr.zip"]', "[]"), "every kind but 'made' has sources"),
    "a kind of ours": (ENTRY.replace('"benchmark"', '"made"').replace('["clevr.zip"]', "[]"), "only refiner"),
    "vectors without a shape": (ENTRY.replace('"benchmark"', '"vectors"'), "vectors and files"),
    "text in place of a table": ('datasets = "x"', "datasets: Input should be a valid dict"),
}


@pytest.mark.parametrize(("text", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_users_file_names_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "catalog.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_catalogue(tmp_path)
    assert str(tmp_path / "catalog.toml") in caught.value.message
    assert says in caught.value.message
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_users_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        (tmp_path / "catalog.toml").mkdir()
    else:
        (tmp_path / "catalog.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"catalog\.toml cannot be read"):
        load_catalogue(tmp_path)


@pytest.mark.parametrize("name", ["c-gqa", "demo"])
def test_a_name_that_we_have_is_a_clash(tmp_path: Path, name: str) -> None:
    (tmp_path / "catalog.toml").write_text(ENTRY.replace("ao-clevr]", f"{name}]"))
    with pytest.raises(
        ConfigError, match=f"The dataset '{name}' is defined twice: in the catalogue of refiner"
    ) as e:
        load_catalogue(tmp_path)
    assert str(tmp_path / "catalog.toml") in str(e.value)


def test_two_sources_of_one_name_must_be_the_same() -> None:
    second = ENTRY.replace("ao-clevr]", "vaw-clevr]")
    assert set(parse({"one": ENTRY, "two": second}).datasets) == {"ao-clevr", "vaw-clevr"}
    with pytest.raises(ConfigError, match=r"The source 'clevr\.zip' is defined twice: in one and in two"):
        parse({"one": ENTRY, "two": second.replace("example.org/", "example.com/")})
    with pytest.raises(ConfigError, match="The dataset 'ao-clevr' is defined twice: in one and in two"):
        parse({"one": ENTRY, "two": ENTRY})


# --- catalogues of installed packages ---------------------------------------------------------------


def install(site: Path, package: str, code: str, point: str = "catalogue") -> None:
    """What an installer leaves of a package with one module and one entry point."""
    info = site / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{DATASETS_GROUP}]\n{point} = {package}:text\n")
    (site / f"{package}.py").write_text(code)


def returning(text: str) -> str:
    return f"def text():\n    return {text!r}\n"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    site = tmp_path / "site-packages"
    monkeypatch.syspath_prepend(site)
    return site


def load(tmp_path: Path) -> Catalogue:
    return load_catalogue(tmp_path / "home")


def test_an_installed_package_adds_datasets(packages: Path, tmp_path: Path) -> None:
    install(packages, "clevr_data", returning(ENTRY))
    found = load(tmp_path)
    assert found.find("ao-clevr").title == "AO-CLEVr"
    assert found.origins == {"ao-clevr": "the package clevr_data (entry point catalogue)"}


def test_two_packages_may_call_their_entry_points_alike(packages: Path, tmp_path: Path) -> None:
    install(packages, "first_data", returning(ENTRY))
    install(packages, "second_data", returning(ENTRY.replace("clevr", "other")))
    assert len(entry_points(group=DATASETS_GROUP)) == 2
    assert set(load(tmp_path).origins) == {"ao-clevr", "ao-other"}


def test_a_package_and_a_file_with_one_name_clash(packages: Path, tmp_path: Path) -> None:
    install(packages, "clevr_data", returning(ENTRY))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/catalog.toml").write_text(ENTRY)
    with pytest.raises(
        ConfigError, match=r"'ao-clevr' is defined twice: in the package clevr_data .* and in /"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import not_installed_here", "cannot be loaded (No module named 'not_installed_here')"),
        ("def text():\n    raise OSError('lost')", "cannot be loaded (lost)"),
        ("def text():\n    return 3", "cannot be loaded (it returns int, not text)"),
        ("text = None", "cannot be loaded ("),
        (returning("[[["), "cannot be used: "),
        (returning(ENTRY.replace("home", "hoem")), "cannot be used: datasets.ao-clevr: home: Field required"),
    ],
)
def test_a_package_that_fails_is_named(packages: Path, tmp_path: Path, code: str, says: str) -> None:
    module = f"bad_data_{abs(hash(code))}"
    install(packages, module, code)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert f"the package {module}" in str(caught.value)
    assert says in str(caught.value)
