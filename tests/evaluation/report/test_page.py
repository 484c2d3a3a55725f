from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refiner_cli.evaluation.evaluate import EvalOptions, evaluate_score_file
from refiner_cli.evaluation.report.page import write_report
from tests.conftest import Cli
from tests.evaluation.test_score_files import saved

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BLUE = (0x25, 0x63, 0xC9)  # of the curve, in the page's style sheet


@pytest.fixture(scope="module")
def page(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a trained run."""
    from refiner_cli.__main__ import main

    file = tmp_path_factory.mktemp("report") / "report.html"
    with pytest.raises(SystemExit) as left:
        main(["-q", "eval", str(small_run), "--feasibility", "soft", "--bootstrap-samples", "20",
              "--report", str(file), "--json"])  # fmt: skip
    assert not left.value.code
    return file


def test_the_page_needs_nothing_else(page: Path) -> None:
    text = page.read_text("utf-8")
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'src="([^"]*)', text))
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)
    assert not re.search(r"{{|{%|>None<|>nan<", re.sub(r"base64,[^\"]*", "", text))


def test_the_page_shows_what_eval_prints(cli: Cli, small_run: Path, page: Path) -> None:
    text = page.read_text("utf-8")
    result = cli("eval", small_run, "--feasibility", "soft", "--bootstrap-samples", 20, "--json").json
    for world in result["worlds"].values():
        low, high = world["intervals"]["AUC"]
        assert f"<td>{world['AUC']:.1f}<small>{low:.1f} to {high:.1f}</small></td>" in text
        for row in world["hardest_unseen"]:
            assert f"<b>{row['name']}</b>" in text
    assert "Nothing was chosen on the test split." in text
    for name, value in {"model": str(small_run), "method": "refiner", "backbone": "tiny"}.items():
        assert f"<dt>{name}</dt><dd>{value}</dd>" in text
    assert all(f"<dt>{name}</dt>" in text for name in ("dataset", "date", "command"))
    assert f"lambda {result['worlds']['open']['feasibility']['value']:.4g}" in text
    assert text.count('<div class="photos"><img') == 2 * 12


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    states = np.array(["<script>alert(1)</script>", "a&b", '"c"'])
    result = evaluate_score_file(saved(tmp_path, states=states), EvalOptions(bootstrap_samples=2))
    write_report(tmp_path / "report.html", result)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "validation" not in text


def test_it_looks_right_in_a_browser(page: Path, tmp_path: Path) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    shot = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1600",
             f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}"]  # fmt: skip
    subprocess.run([browser, *flags, page.as_uri()], capture_output=True, timeout=120, check=True)
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=int)
    assert pixels.shape == (1600, 1200, 3)
    blue = (abs(pixels - BLUE).max(2) < 12).nonzero()
    assert len(blue[0]) > 300  # the closed world's curve and key were drawn
    assert np.ptp(blue[1]) > 150
    margins = np.concatenate([pixels[:, :20], pixels[:, -20:]], 1)
    assert len(np.unique(margins.reshape(-1, 3), axis=0)) == 1  # nothing runs out of the page
