from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from refiner_cli.core.model_io.checkpoint import read_stored
from refiner_cli.core.models.calibration import Calibration, ChosenOn, Confidence, Temperatures
from refiner_cli.evaluation.evaluate import EvalOptions, evaluate_score_file
from refiner_cli.evaluation.report.page import write_report
from refiner_cli.evaluation.report.sentences import calibration_sentences
from refiner_cli.training.run_dir import model_folder
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
        error = world["confidence"]["ece"]["pair"]
        assert f"{error['before']:.1f} points before temperature and {error['after']:.1f} after it" in text
    assert "Nothing was chosen on the test split." in text
    for name, value in {"model": str(small_run), "method": "refiner", "backbone": "tiny"}.items():
        assert f"<dt>{name}</dt><dd>{value}</dd>" in text
    assert all(f"<dt>{name}</dt>" in text for name in ("dataset", "date", "command"))
    assert f"lambda {result['worlds']['open']['feasibility']['value']:.4g}" in text
    assert text.count('<div class="photos"><img') == 2 * 12


def test_thresholds_are_headed_by_the_images_they_were_found_on(tmp_path: Path, page: Path) -> None:
    assert "<th>val coverage</th>" in page.read_text("utf-8")
    result = evaluate_score_file(saved(tmp_path), EvalOptions(bootstrap_samples=2))
    crossed = dataclasses.replace(result, calibration=Calibration(chosen_on="cross-validation"))
    assert (result.calibration_images, crossed.calibration_images) == ("val", "cross-validation")


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    states = np.array(["<script>alert(1)</script>", "a&b", '"c"'])
    result = evaluate_score_file(saved(tmp_path, states=states), EvalOptions(bootstrap_samples=2))
    write_report(tmp_path / "report.html", result)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "validation" not in text


def test_the_page_says_how_the_run_was_calibrated(small_run: Path, page: Path) -> None:
    text = page.read_text("utf-8")
    stored = read_stored(model_folder(small_run))[1].calibration.value()
    assert stored.chosen_on == "validation"
    for sentence in calibration_sentences(stored):
        assert f"<li>{escape(sentence)}</li>" in text
    assert "best closed-world AUC" not in text


@pytest.mark.parametrize("chosen_on", get_args(ChosenOn))
def test_every_setting_of_a_calibration_is_named_with_the_images_it_was_chosen_on(
    chosen_on: ChosenOn,
) -> None:
    values = {
        "state_weight": 0.125, "object_weight": 0.375, "bias": 2.5, "hubness_strength": 0.625,
        "wise_ft_alpha": 0.75, "tta_shifts": 4,
    }  # fmt: skip
    chosen = Calibration(**values, chosen_on=chosen_on, closed=Confidence(Temperatures(2.0)))  # type: ignore[arg-type]
    sentences = list(calibration_sentences(chosen))
    assert not [value for value in values.values() if f"{value:g}" not in " ".join(sentences)]
    where = {
        "validation": "on validation", "cross-validation": "in a cross-validation of the training images",
        "nothing": "there were no images to choose on", "": "does not say on which images",
    }[chosen_on]  # fmt: skip
    assert all(where in sentence for sentence in sentences)
    assert chosen_on == "validation" or "on validation" not in " ".join(sentences)
    if chosen_on in {"validation", "cross-validation"}:
        rules = dict(zip(("views", "evidence", "Bias", "Temperatures"), sentences, strict=True))
        assert all(name in sentence for name, sentence in rules.items())
        assert "mean of closed-world and open-world AUC" in rules["views"]
        assert "largest sure gain" in rules["views"]
        assert "same rule" in rules["evidence"]
        assert "closed-world harmonic mean" in rules["Bias"]
        both = list(calibration_sentences(dataclasses.replace(chosen, open_bias=0.4375)))[2]
        assert "0.438" in both
        assert "harmonic mean of each world" in both


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
