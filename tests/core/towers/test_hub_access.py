"""Where the Hub's name does not resolve nothing is tried again and again, and what is in the cache serves."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from refiner_cli.core.model_io.hub import hub_model
from refiner_cli.core.towers.hub_access import failure, hub_access, resolves, unresolved_host
from tests.conftest import Cli

HOST = "hub.invalid"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A machine without name resolution; the names that were asked for."""
    asked: list[str] = []

    def refuse(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"https://{HOST}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for cached in (resolves, hub_model):
        cached.cache_clear()
    yield asked
    for cached in (resolves, hub_model):
        cached.cache_clear()


@pytest.mark.parametrize("model", ["ViT-B-32", "ViT-B-32:laion2b_s34b_b79k", "hf-hub:ann/fruit"])
def test_without_a_network_a_model_is_one_sentence(
    cli: Cli, offline: list[str], tmp_path: Path, model: str
) -> None:
    for name in ("states", "objects"):
        (tmp_path / name).write_text("red\n")
    (tmp_path / "a.jpg").write_bytes(b"")
    words = ("--states", tmp_path / "states", "--objects", tmp_path / "objects")
    outcome = cli("predict", model, tmp_path / "a.jpg", *words)
    assert outcome.code == 4
    assert HOST in outcome.err
    assert len([line for line in outcome.err.splitlines() if line.startswith("Error")]) == 1
    assert offline == [HOST]  # once, before the client begins to try


def test_a_cached_file_is_found_without_a_network(offline: list[str], tmp_path: Path) -> None:
    commit = "0" * 40
    repository = tmp_path / "cache" / "models--ann--fruit"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    with hub_access():
        found = huggingface_hub.hf_hub_download("ann/fruit", "config.json")
    assert Path(found).read_text() == "{}"
    assert offline == [HOST]
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_proxy_resolves_names(offline: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert unresolved_host() is None
    assert offline == []


def test_where_the_user_is_offline_no_name_is_looked_up(
    offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with hub_access() as host:
        assert host is None
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert offline == []


def test_a_failure_of_another_kind_keeps_its_reason() -> None:
    assert failure(OSError("No space left on device"), HOST) == "No space left on device"


def test_what_is_found_of_one_host_says_nothing_of_another(
    offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unresolved_host() == HOST
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://other.test")
    assert unresolved_host() == "other.test"
    assert offline == [HOST, "other.test"]
