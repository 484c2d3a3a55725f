"""``refiner reproduce`` on a small copy of a benchmark, served on loopback: complete, killed, resumed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refiner_cli.cli.reproducing import write_reproduction
from refiner_cli.data.download.catalog import Catalogue, Counts
from refiner_cli.data.download.catalog_files import built_in
from refiner_cli.reproduction.published import BENCHMARKS, PUBLISHED
from tests.cli.test_download import START
from tests.conftest import ROOT, Cli
from tests.data.download import published
from tests.data.download.server import Site, serving
from tests.training.processes import steps, wait_until

SMALL = ("--backbone", "tiny", "--pretrained", "built-in", "--similarity", "text", "--workers", "0",
         "--set", "train.epochs=2", "--set", "train.batch_size=4")  # fmt: skip


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """C-GQA's layout with a few images of noise, served here; the catalogue as a file."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    pairs = published.tiny_pairs()
    rows = [
        row | {"image": f"{number}-{row['image']}"}
        for number in range(3)
        for row in published.rows_of(pairs, "{split}{number}.jpg")
    ]
    noise = np.random.default_rng(0)
    files = published.split_files("cgqa/", pairs, rows)
    for row in rows:
        stream = io.BytesIO()
        Image.fromarray(noise.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(stream, "JPEG")
        files[f"cgqa/images/{row['image']}"] = stream.getvalue()
    real = built_in().find("c-gqa")
    with serving() as site:
        small = served(site, real.model_copy(update={"split_sha256": {}}), published.zipped(files))
        file = tmp_path / "catalogue.json"
        known = Catalogue(datasets={**built_in().datasets, "c-gqa": small})
        file.write_text(known.model_dump_json())
        monkeypatch.setattr("refiner_cli.data.download.catalog_files.load_catalogue", lambda _: known)
        yield file


def served(site: Site, dataset: object, archive: bytes) -> object:
    source = dataset.sources[0].model_copy(update={"urls": (site.put("/cgqa.zip", archive),)})  # type: ignore[attr-defined]
    expected = Counts(states=2, objects=3, train_pairs=4, train_images=12, val_images=6, test_images=6)
    return dataset.model_copy(update={"sources": (source,), "expected": expected})  # type: ignore[attr-defined]


@pytest.mark.timeout(900)  # several trainings in processes of their own
def test_from_nothing_to_a_table_killed_and_resumed(cli: Cli, catalogue: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = (
        "reproduce",
        "c-gqa",
        "--out",
        out,
        "--seeds",
        "2",
        "--method",
        "clip",
        "--method",
        "troika",
        *SMALL,
    )
    plan = cli("-q", *command, "--dry-run", "--json")
    assert plan.code == 0, plan.err
    assert not out.exists()
    assert plan.json["schema"] == "refiner.reproduce-plan/1"
    assert [(row["method"], row["runs"], row["steps"]) for row in plan.json["methods"]] == [
        ("clip", 2, 0),
        ("troika", 2, 6),
    ]
    assert plan.json["files"][0]["bytes"] > 0
    assert plan.json["seconds"] > 0

    run = out / "troika" / "seed-0" / "run"
    started = [sys.executable, "-c", START, catalogue, *command, "--set", "train.checkpoint_minutes=0"]
    process = subprocess.Popen(
        [str(word) for word in started], cwd=ROOT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_until(lambda: steps(run) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = out / "clip" / "seed-0" / "result.json"
    before = first.stat().st_mtime_ns
    assert not (out / "results.json").exists()

    done = cli(*command, "--json")
    assert done.code == 0, done.err
    report = done.json
    assert first.stat().st_mtime_ns == before  # a finished job is not repeated
    assert report == json.loads((out / "results.json").read_bytes())
    assert report["schema"] == "refiner.reproduce/1"
    assert [(r["method"], r["seed"]) for r in report["runs"]] == [
        ("clip", 0), ("troika", 0), ("clip", 1), ("troika", 1),
    ]  # fmt: skip
    assert {len(r["weights_sha256"]) for r in report["runs"]} == {64}
    assert report["dataset"]["archives"]["cgqa.zip"]["sha256"]
    rows = {(r["method"], r["world"], r["protocol"]): r for r in report["summary"]}
    assert len(rows) == 2 * 3 * 2
    assert rows["troika", "closed", "legacy"]["published"] == {"S": 41.0, "U": 35.7, "HM": 29.4, "AUC": 12.4}
    assert rows["troika", "open mask", "legacy"]["published"]["AUC"] == 2.7
    assert rows["troika", "open", "legacy"]["published"] is None
    assert rows["troika", "closed", "exact"]["published"] is None
    page = (out / "results.md").read_text("utf-8")
    sections = dict(section.split("\n", 1) for section in page.split("\n## ")[1:])
    assert {title for title, text in sections.items() if "by the legacy protocol" in text} == {
        "open mask world, protocol exact"
    }
    (command_row,) = [line for line in page.splitlines() if line.startswith("| command |")]
    assert command_row.count(" reproduce c-gqa ") == 2  # the killed one, and the one that went on
    assert "| troika, published | 41.0 | 35.7 | 29.4 | 12.4 | Huang et al., CVPR 2024" in page
    assert "| ClusPro, published | 44.3 |" in page

    again = cli(*command)
    assert again.code == 0
    assert again.out == page == (out / "results.md").read_text("utf-8")
    assert json.loads((out / "results.json").read_bytes()) == report
    assert "steps" not in again.err  # nothing is left to estimate

    nothing, everything = (
        cli("-q", *command, "--dry-run", "--json", *changed).json["methods"]
        for changed in ((), ("--set", "train.lr=0.5"))
    )
    assert nothing == []
    assert [row["runs"] for row in everything] == [2, 2]  # what is there is of other settings
    other = cli(*command, "--set", "train.lr=0.5")
    assert other.code == 2
    assert "was started with train.lr = " in other.err


def test_unusable_requests_are_refused_before_anything_is_fetched(
    cli: Cli, catalogue: Path, tmp_path: Path
) -> None:
    assert cli("reproduce", "imagenet").code == 2
    assert cli("reproduce", "c-gqa", "--method", "magic", "--out", tmp_path / "out").code == 2
    (tmp_path / "file").touch()
    assert cli("reproduce", "c-gqa", "--out", tmp_path / "file").code == 2
    assert not (tmp_path / "out").exists()


def test_a_report_that_names_what_is_not_utf8_is_written(tmp_path: Path) -> None:
    made = {"command": "refiner reproduce c-gqa --out caf\udce9"}
    run = {"method": "clip", "seed": 0, "step": 0, "weights_sha256": "0", "made": made}
    report = {
        "benchmark": "c-gqa", "seeds": 1, "feasibility": "mask", "backbone": "tiny", "vectors": "text tower",
        "summary": [], "runs": [run], "dataset": {"fingerprint": "1", "archives": {}},
    }  # fmt: skip
    write_reproduction(tmp_path, report)
    page = (tmp_path / "results.md").read_text("utf-8")
    assert "--out caf\\udce9" in page
    assert "Published figures are of CLIP ViT-L/14" in page  # whatever the backbone here is
    assert json.loads((tmp_path / "results.json").read_text("utf-8")) == report


def test_published_figures_are_percentages_of_every_benchmark() -> None:
    for row in PUBLISHED:
        assert set(row.closed) == set(BENCHMARKS)
        for s, u, hm, auc in (*row.closed.values(), *row.open.values()):
            assert 0 < auc < hm < max(s, u) < 100
