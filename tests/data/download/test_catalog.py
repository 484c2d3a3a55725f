from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

import refiner_cli.data.download
from refiner_cli.data.benchmark import read_pairs
from refiner_cli.data.download.catalog import catalogue, parse
from refiner_cli.errors import UsageError

NAMES = ["mit-states", "ut-zappos", "c-gqa", "vaw-czsl", "clothing16k", "glove", "demo"]


def test_the_catalogue_is_complete() -> None:
    datasets = catalogue().datasets
    assert list(datasets) == NAMES
    for dataset in datasets.values():
        assert dataset.title
        assert dataset.home
        assert dataset.licence
        assert dataset.citation or dataset.kind == "made"
        assert all(
            url.startswith(("http://", "https://")) for source in dataset.sources for url in source.urls
        )


def test_every_source_is_used() -> None:
    raw = tomllib.loads((Path(refiner_cli.data.download.__file__).parent / "catalog.toml").read_text("utf-8"))
    used = {source.file for dataset in catalogue().datasets.values() for source in dataset.sources}
    assert set(raw["sources"]) == used


@pytest.mark.parametrize(("name", "folder"), [("c-gqa", "cgqa"), ("ut-zappos", "ut-zappos")])
def test_the_counts_are_those_of_the_real_pair_lists(splits: Path, name: str, folder: str) -> None:
    expected = catalogue().find(name).expected
    train, val, test = (set(read_pairs(splits / folder / f"{s}_pairs.txt")) for s in ("train", "val", "test"))
    assert expected.states == len({s for s, _ in train | val | test})
    assert expected.objects == len({o for _, o in train | val | test})
    assert expected.train_pairs == len(train)
    assert (expected.val_seen_pairs, expected.val_unseen_pairs) == (len(val & train), len(val - train))
    assert (expected.test_seen_pairs, expected.test_unseen_pairs) == (len(test & train), len(test - train))


def test_a_name_that_is_nearly_right_is_suggested() -> None:
    with pytest.raises(UsageError) as caught:
        catalogue().find("cgqa")
    assert caught.value.hint == "Did you mean 'c-gqa'?"
    with pytest.raises(UsageError, match="It has mit-states, ut-zappos"):
        catalogue().find("imagenet")


def test_what_only_comes_by_hand_is_known() -> None:
    assert [name for name, dataset in catalogue().datasets.items() if dataset.by_hand] == [
        "vaw-czsl",
        "clothing16k",
    ]


def test_sources_that_several_datasets_need_are_known() -> None:
    datasets = catalogue().datasets
    assert "compositional_split_natural.tar.gz" in catalogue().shared_sources([datasets["mit-states"]])
    both = [datasets["mit-states"], datasets["ut-zappos"]]
    assert "compositional_split_natural.tar.gz" not in catalogue().shared_sources(both)


def test_a_mistake_in_the_catalogue_is_found() -> None:
    entry = 'title = "X"\nkind = "made"\nhome = "h"\nlicence = "l"\ncitation = []\n'
    assert parse(f"[sources]\n[datasets.x]\n{entry}").find("x").title == "X"
    with pytest.raises(ValidationError, match="has sources"):
        parse(f"[sources]\n[datasets.x]\n{entry}".replace("made", "benchmark"))
    with pytest.raises(ValidationError, match="Extra inputs"):
        parse(f"[sources]\n[datasets.x]\n{entry}colour = 1\n")
    with pytest.raises(ValidationError, match="vectors and files"):
        parse(f"[sources]\n[datasets.x]\n{entry}files = ['a']\n".replace("made", "vectors"))
