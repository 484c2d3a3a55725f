from __future__ import annotations

import re
from pathlib import Path

import pytest

from refiner_cli.core.model_io.checkpoint import read_model
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.refiner import Refiner
from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.demo.attention_page import write_attention_page
from refiner_cli.demo.walkthrough import some_scenes
from refiner_cli.inference.recogniser import Recogniser
from refiner_cli.training.run_dir import model_folder


@pytest.fixture(scope="module")
def model(small_run: Path) -> Model:
    return read_model(model_folder(small_run))[0]


def test_every_scene_has_its_photo_predictions_and_a_map_per_query(
    model: Model, small_demo: Path, tmp_path: Path
) -> None:
    scenes = some_scenes(load_benchmark(small_demo), 0)[:3]
    recogniser = Recogniser(model)
    write_attention_page(tmp_path / "page.html", scenes, recogniser, recogniser)
    text = (tmp_path / "page.html").read_text("utf-8")
    assert isinstance(model, Refiner)
    roles = model.query_roles
    assert f"one of the {len(roles)} learned queries" in text
    assert text.count("<figcaption>state</figcaption>") == 3 * roles.count("state")
    assert text.count('<div class="row">') == 3
    assert text.count("<img ") == 3 * (1 + len(roles))
    assert text.count("<dt>CLIP</dt>") == text.count("<dt>Refiner</dt>") == 3
    for scene in scenes:
        assert f"<dt>truth</dt><dd>{' '.join(scene.sample.pair)}</dd>" in text
    assert not re.search(r"https?:|<script|{{|{%", re.sub(r'src="[^"]*"', "", text))
