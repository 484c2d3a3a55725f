"""The measure of "region-specific": on hand-made attention, on drawn scenes, and as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.data.crop import Crop
from refiner_cli.demo.scenes import SIZE, draw_scene, scene
from refiner_cli.errors import DatasetError
from refiner_cli.experiments.regions import Regions, box_masks, demo_masks, measure, patch_shares
from tests.conftest import ROOT


def test_masses_of_a_hand_made_attention_map() -> None:
    # Four patches: the object on the first and half of the second, clutter on the third.
    regions = Regions(torch.tensor([[1.0, 0.5, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0, 0.0]]))
    class_token = torch.full((1, 4), 0.25)
    queries = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]]])
    found = measure(class_token, queries, regions)
    assert found.area.item() == pytest.approx(0.375)
    assert found.class_object.item() == pytest.approx(0.375)  # uniform attention: the area itself
    assert found.class_clutter.item() == pytest.approx(0.25)
    assert found.query_object[0].tolist() == pytest.approx([1.0, 0.25, 0.0])
    assert found.query_clutter[0].tolist() == pytest.approx([0.0, 0.5, 0.0])
    assert found.overlap.item() == pytest.approx(1.0)  # no two queries share a patch
    report = found.to_json(["composition", "state", "object"])
    assert report["schema"] == "refiner.regions/1"
    assert [query["role"] for query in report["queries"]] == ["composition", "state", "object"]
    assert report["excess"]["query 0"]["mean"] == pytest.approx(0.625)
    same = measure(class_token, queries[:, :1].expand(1, 2, 4), regions)
    assert same.overlap.item() == 0


def test_one_query_has_no_overlap() -> None:
    regions = Regions(torch.rand(3, 4), torch.rand(3, 4))
    report = measure(torch.full((3, 4), 0.25), torch.full((3, 1, 4), 0.25), regions).to_json(["state"])
    assert report["overlap_tv"] is None
    assert report["overlap_tv_interval"] is None


def test_a_scene_knows_where_its_object_is() -> None:
    pairs = [("sliced", "apple"), ("rusty", "key")]
    alone = draw_scene(pairs[0], pairs, np.random.default_rng(3), clutter=0)
    assert not alone.clutter.any()
    assert 0.05 < alone.object.mean() < 0.5
    crowded = draw_scene(pairs[0], pairs, np.random.default_rng(3), clutter=18)
    assert crowded.clutter.mean() > 0.05
    assert (crowded.object + crowded.clutter).max() <= 1 + 1e-5
    again = scene(pairs[0], pairs, np.random.default_rng(3), clutter=18)
    assert np.array_equal(np.asarray(again), np.asarray(crowded.image))


def test_masks_are_seen_in_the_models_frame() -> None:
    flat = np.zeros((40, 80, 3), np.uint8)  # twice as wide as high: the crop leaves the middle
    flat[:, 20:40, 0] = 255
    flat[:, :20, 1] = 255  # cut off
    on_object, on_clutter = patch_shares(Image.fromarray(flat), Crop(40, 40), 20)
    assert on_object.tolist() == pytest.approx([1, 0, 1, 0])
    assert on_clutter.tolist() == pytest.approx([0, 0, 0, 0])


def test_masks_of_the_demo_are_drawn_again(small_demo: Path) -> None:
    found = list(demo_masks(load_benchmark(small_demo), "test", [0]))
    assert len(found) == len(load_benchmark(small_demo).samples["test"])
    assert all(mask.size == (SIZE, SIZE) for _, mask in found)
    with pytest.raises(DatasetError, match="is not an image of the demo benchmark"):
        list(demo_masks(load_benchmark(small_demo), "test", [5]))


def test_boxes_give_masks_and_bad_lines_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    file = tmp_path / "boxes.csv"
    file.write_text("path,x,y,width,height\na.png,0,0,10,10\n")
    ((photo, mask),) = box_masks(file)
    assert photo.name == "a.png"
    assert np.asarray(mask)[..., 0].mean() == pytest.approx(127.5)
    file.write_text("path,x,y,width,height\na.png,0,left,10,10\n")
    with pytest.raises(DatasetError, match="line 2 is not a box"):
        list(box_masks(file))


def test_the_command_reports_on_a_run(small_run: Path, small_demo: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "refiner_cli.experiments",
        "regions",
        small_run,
        "--split",
        "val",
        "--json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["images"] == len(load_benchmark(small_demo).samples["val"])
    assert 0 < report["area"] < 0.5
    assert len(report["queries"]) == 6
    assert all(0 <= query["object"] <= 1 for query in [*report["queries"], report["class_token"]])
