from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.data.overview import split_facts, write_overview
from tests.conftest import Cli


def test_the_rarest_pairs_come_first(small_demo: Path) -> None:
    benchmark = load_benchmark(small_demo)
    part = split_facts(benchmark)["test"]
    images = Counter(sample.pair for sample in benchmark.samples["test"])
    assert [n for _, n in part.rarest] == sorted(images.values())[: len(part.rarest)]
    assert all(images[pair] == n for pair, n in part.rarest)
    assert part.seen_pairs + part.unseen_pairs == len(benchmark.pairs["test"])


def test_the_page_names_an_unreadable_image(small_demo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(small_demo, folder)
    for file in (folder / "images").rglob("*.jpg"):
        file.write_bytes(b"no image")
    page = tmp_path / "page.html"
    write_overview(page, load_benchmark(folder))
    text = page.read_text("utf-8")
    assert "it is not an image in a supported format" in text
    assert "<img" not in text


def test_info_writes_the_page(cli: Cli, small_demo: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    facts = cli("info", small_demo, "--html", page, "--json").json
    assert facts["train"]["images"] > 0
    assert page.read_text("utf-8").count("<img src=") == 48
    assert cli("info", small_demo).out.count("rarest") == 3


def test_a_model_has_no_such_page(cli: Cli, small_run: Path, tmp_path: Path) -> None:
    outcome = cli("info", small_run, "--html", tmp_path / "page.html")
    assert outcome.code == 2
