"""``refiner download`` against a real server on loopback."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from refiner_cli.cli.download_view import show_outcomes
from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.data.download.catalog import Catalogue, Counts, Dataset
from refiner_cli.data.download.catalog_files import built_in
from refiner_cli.data.download.datasets_dir import DatasetsDir
from refiner_cli.data.download.downloader import Downloaded
from tests.conftest import Cli
from tests.data.download import published
from tests.data.download.server import Site, serving
from tests.training.processes import wait_until

START = """
import signal
import sys
from pathlib import Path
from refiner_cli.data.download import catalog, catalog_files

def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    known = catalog.Catalogue.model_validate_json(Path(sys.argv[1]).read_text())
    catalog_files.load_catalogue = lambda _: known
    from refiner_cli.__main__ import main
    main(sys.argv[2:])

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as running:
        yield running


@pytest.fixture
def known(site: Site, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """The catalogue, with eight images served here in place of C-GQA, behind a dead mirror."""
    pairs = published.tiny_pairs()
    rows = published.rows_of(pairs, "{split}{number}.jpg")
    padding = {"cgqa/features.bin": random.Random(0).randbytes(300_000)}
    url = site.put("/cgqa.zip", published.c_gqa(pairs, rows, "cgqa/", padding))
    real = built_in()
    c_gqa = real.find("c-gqa")
    source = c_gqa.sources[0].model_copy(update={"urls": (f"{site.address}/dead.zip", url)})
    expected = Counts(states=2, objects=3, train_pairs=4)
    tiny = c_gqa.model_copy(update={"sources": (source,), "expected": expected, "split_sha256": {}})
    changed = Catalogue(datasets={**real.datasets, "c-gqa": tiny})
    monkeypatch.setattr("refiner_cli.data.download.catalog_files.load_catalogue", lambda _: changed)
    return changed


@pytest.fixture
def tiny(known: Catalogue) -> Dataset:
    return known.find("c-gqa")


def test_a_dataset_is_fetched_prepared_and_verified(
    cli: Cli, tiny: Dataset, site: Site, tmp_path: Path
) -> None:
    outcome = cli("download", tiny.name, "--out", tmp_path, "--json")
    assert outcome.code == 0
    (told,) = outcome.json["datasets"]
    assert (told["name"], told["already"], told["verification"]["usable"]) == ("c-gqa", False, True)
    assert load_benchmark(Path(told["path"])).states == ("cut", "ripe")
    assert "/dead.zip" in outcome.err
    assert "fetching cgqa.zip: " in outcome.err
    assert "verifying c-gqa: 8 of 8" in outcome.err
    again = cli("download", tiny.name, "--out", tmp_path)
    assert again.out == f"{tmp_path / 'c-gqa'}\n"
    assert site.asked_for("/cgqa.zip") == [None]


def test_the_catalogue_shows_what_is_here(cli: Cli, known: Catalogue, tiny: Dataset) -> None:
    before = {d["name"]: d for d in cli("download", "--list", "--json").json["datasets"]}
    assert set(before) == set(known.datasets)
    assert not before["c-gqa"]["present"]
    cli("download", tiny.name)
    after = {d["name"]: d for d in cli("download", "--list", "--json").json["datasets"]}
    assert after["c-gqa"]["present"]
    assert after["c-gqa"]["verified"]
    text = cli("download", "--list").out
    assert "verified 20" in text
    assert "by hand" in text


def test_word_vectors_are_not_to_be_trained_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    both = [
        Downloaded(built_in().find(name), tmp_path / name, already=True, verification=None)
        for name in ("glove", "c-gqa")
    ]
    show_outcomes(DatasetsDir(tmp_path), both[:1], [], as_json=False)
    assert "next" not in capfd.readouterr().err
    show_outcomes(DatasetsDir(tmp_path), both, [], as_json=False)
    assert f"next: refiner train {tmp_path / 'c-gqa'}" in capfd.readouterr().err


def test_looking_needs_no_place_to_write(
    cli: Cli, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("REFINER_HOME", str(tmp_path / "file/home"))
    assert cli("download", "--list").code == 0
    assert cli("download", tiny.name, "--dry-run").code == 0
    outcome = cli("download", tiny.name)
    assert outcome.code == 2
    assert "cannot be written" in outcome.err


def test_a_plan_fetches_nothing(cli: Cli, tiny: Dataset, site: Site, tmp_path: Path) -> None:
    plan = cli("download", tiny.name, "--dry-run", "--out", tmp_path / "new", "--json").json
    assert [file["bytes"] for file in plan["files"]] == [len(site.pages["/cgqa.zip"].body)]
    assert not (tmp_path / "new").exists()
    assert "308.8 kB" in cli("download", tiny.name, "--dry-run", "--out", tmp_path / "new").out
    assert "/cgqa.zip" not in site.sent


def test_an_archive_fetched_by_hand(cli: Cli, tiny: Dataset, site: Site, tmp_path: Path) -> None:
    archive = tmp_path / "got by hand.zip"
    archive.write_bytes(site.pages["/cgqa.zip"].body)
    outcome = cli("download", tiny.name, "--from-archive", archive, "--out", tmp_path / "data")
    assert outcome.code == 0
    assert site.asked == []


def test_verification_finds_a_lost_image(cli: Cli, tiny: Dataset, tmp_path: Path) -> None:
    cli("download", tiny.name, "--out", tmp_path)
    assert cli("download", tiny.name, "--out", tmp_path, "--verify").code == 0
    (tmp_path / "c-gqa/images/train0.jpg").unlink()
    outcome = cli("download", tiny.name, "--out", tmp_path, "--verify")
    assert outcome.code == 4
    assert "1 image is missing, for example 'train0.jpg'" in outcome.err


def test_archives_are_removed_on_request(cli: Cli, tiny: Dataset, tmp_path: Path) -> None:
    cli("download", tiny.name, "--out", tmp_path, "--delete-archives")
    assert not (tmp_path / "archives/cgqa.zip").exists()
    assert (tmp_path / "c-gqa").is_dir()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["c-gpa"], 2, "Did you mean 'c-gqa'?"),
        ([], 2, "A name is missing"),
        (["c-gqa", "--list", "--verify"], 2, "exclude each other"),
        (["clothing16k"], 4, "--from-archive"),
        (["glove", "--verify"], 4, "Run 'refiner download glove'"),
    ],
)
@pytest.mark.usefixtures("known")
def test_a_mistake_is_one_sentence(cli: Cli, arguments: list[str], code: int, says: str) -> None:
    outcome = cli("download", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert says in outcome.err


def test_a_web_page_instead_of_the_archive_exits_4(cli: Cli, tiny: Dataset, site: Site) -> None:
    site.put("/cgqa.zip", b"<!doctype html><title>Quota exceeded</title>", kind="text/html")
    outcome = cli("download", tiny.name)
    assert outcome.code == 4
    assert "Quota exceeded" in outcome.err


def test_hostile_metadata_exits_3_and_runs_nothing(
    cli: Cli, tiny: Dataset, site: Site, tmp_path: Path
) -> None:
    class Command:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, (f"touch {tmp_path / 'ran'}",)

    import pickle

    pairs = published.tiny_pairs()
    bad = {"metadata_compositional-split-natural.t7": pickle.dumps(Command())}
    files = published.split_files("", pairs, published.rows_of(pairs, "{split}{number}.jpg")) | bad
    site.put("/cgqa.zip", published.zipped(files))
    outcome = cli("download", tiny.name, "--out", tmp_path / "data")
    assert outcome.code == 3
    assert "cannot be read safely" in outcome.err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "data/c-gqa").exists()


def table(url: str) -> str:
    """A catalogue of one dataset, laid out as C-GQA."""
    return f"""
[sources."berries.zip"]
urls = ["{url}"]
holds = "compositional-split-natural/train_pairs.txt"

[datasets.berries]
title = "Berries [and more]"
kind = "benchmark"
sources = ["berries.zip"]
home = "https://example.org/berries"
licence = "CC BY 4.0"
citation = ["Nobody: Berries. 2026"]
expected = {{ states = 2, objects = 3, train_pairs = 4 }}
"""


@pytest.fixture
def berries(site: Site) -> str:
    pairs = published.tiny_pairs()
    rows = published.rows_of(pairs, "{split}{number}.jpg")
    return table(site.put("/berries.zip", published.c_gqa(pairs, rows, "berries/")))


def test_a_dataset_of_the_users_catalogue_is_listed_and_downloaded(cli: Cli, berries: str) -> None:
    home = Path(os.environ["REFINER_HOME"])
    home.mkdir(parents=True)
    (home / "catalog.toml").write_text(berries)
    listed = {d["name"]: d for d in cli("download", "--list", "--json").json["datasets"]}
    assert listed["berries"]["origin"] == str(home / "catalog.toml")
    assert listed["c-gqa"]["origin"] == ""
    text = cli("download", "--list").out
    assert "Berries [and more]. Licence: CC BY 4.0. https://example.org/berries Added by" in text
    outcome = cli("download", "berries")
    assert outcome.code == 0
    assert "berries.zip came over plain HTTP, and its publisher states no checksum" in outcome.err
    assert load_benchmark(home / "datasets/berries").objects == ("apple", "pear", "plum")
    assert cli("info", "berries", "--json").json["name"] == "berries"


def test_a_dataset_of_an_installed_package_is_listed_and_downloaded(berries: str, tmp_path: Path) -> None:
    """A package as an installer leaves it, and the program as a process of its own."""
    site, info = tmp_path / "site", tmp_path / "site/berry_data-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "berry_data.py").write_text(f"def catalogue():\n    return {berries!r}\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: berry-data\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[refiner.datasets]\nberries = berry_data:catalogue\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "refiner_cli", "download", *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    assert "Added by the package berry-data (entry point berries)" in run("--list")
    assert run("berries", "--out", str(tmp_path / "data")) == f"{tmp_path / 'data/berries'}\n"


def test_a_catalogue_with_a_mistake_exits_3_and_is_named(cli: Cli, berries: str) -> None:
    home = Path(os.environ["REFINER_HOME"])
    home.mkdir(parents=True)
    (home / "catalog.toml").write_text(berries.replace("kind =", "sort ="))
    for arguments in (["--list"], ["berries"]):
        outcome = cli("download", *arguments)
        assert (outcome.code, outcome.out) == (3, "")
        assert (
            f"The datasets of {home / 'catalog.toml'} cannot be used: datasets.berries: kind" in outcome.err
        )


def test_without_a_network_there_is_one_line(
    cli: Cli, known: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = known.find("c-gqa").sources[0]
    urls = ("https://no.such.host.invalid/cgqa.zip", "http://other.invalid/x.zip")
    tiny = known.find("c-gqa").model_copy(update={"sources": (source.model_copy(update={"urls": urls}),)})
    changed = Catalogue(datasets={"c-gqa": tiny})
    monkeypatch.setattr("refiner_cli.data.download.catalog_files.load_catalogue", lambda _: changed)
    outcome = cli("download", "c-gqa")
    assert (outcome.code, outcome.out) == (4, "")
    assert len(outcome.err.splitlines()) == 1
    assert "no host name resolves (no.such.host.invalid, other.invalid)" in outcome.err


@pytest.mark.usefixtures("known")
def test_a_proxy_that_cannot_be_used_matters_only_to_what_needs_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "socksio", None)  # as if it were not installed
    assert cli("download", "--list").code == 0
    assert cli("download", "c-gqa", "--verify").code == 4
    outcome = cli("download", "c-gqa")
    assert (outcome.code, outcome.out) == (6, "")
    assert len(outcome.err.splitlines()) == 1
    assert "pip install socksio" in outcome.err


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_command_that_was_ended_goes_on_where_it_was(
    cli: Cli, known: Catalogue, site: Site, tmp_path: Path, how: signal.Signals
) -> None:
    (tmp_path / "known.json").write_text(known.model_dump_json())
    (tmp_path / "start.py").write_text(START)
    site.pages["/cgqa.zip"].gate = gate = threading.Event()
    out = tmp_path / "data"
    command = [tmp_path / "start.py", tmp_path / "known.json", "download", "c-gqa", "--out", out]
    process = subprocess.Popen([sys.executable, *map(str, command)], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: any(part.stat().st_size for part in out.rglob("*.part")), process)
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    assert not (out / "c-gqa").exists()
    gate.set()
    assert cli("download", "c-gqa", "--out", out).code == 0
    first, second = site.asked_for("/cgqa.zip")
    assert first is None
    assert int(str(second).strip("bytes=-")) > 0
