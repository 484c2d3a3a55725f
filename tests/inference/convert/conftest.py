"""Predictions of a few photos, some with names that no tool expects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from refiner_cli.inference.convert.answers import Answers
from refiner_cli.inference.sources.noted import NotedPlaces

PHOTOS = {  # path -> best pair
    "a.jpg": ("half_eaten", "apple"),
    "sub/a.jpg": ("half_eaten", "apple"),
    "sub_a.jpg": ("half_eaten", "apple"),
    "two words & 100%#?.jpg": ("ripe", "pear"),
    "ä/Ünïcode.jpg": ("../../up", "../../../etc"),
    "-x.jpg": ("on/off", ".hidden"),
    "'=1+1.jpg": ("ripe", "con"),
}


def ranked(names: list[str], best: float) -> list[dict[str, Any]]:
    rest = (0.9 - best) / max(1, len(names) - 1)
    return [{"name": name, "probability": best if i == 0 else rest} for i, name in enumerate(names)]


def predicted(path: str, pair: tuple[str, str], probability: float = 0.5) -> dict[str, Any]:
    """A row as ``refiner predict --top-k 2`` writes it."""
    state, obj = pair
    guesses = [
        {"state": state, "object": obj, "score": 2.0, "probability": probability, "seen": True},
        {"state": "raw", "object": obj, "score": 1.0, "probability": 0.1, "seen": False},
    ]
    return {"path": path, "status": "ok", "error": None, "size": 1, "modified": "x", "predictions": guesses,
            "states": ranked([state, "raw"], 0.6), "objects": ranked([obj, "leek"], 0.7)}  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """The photos, each different."""
    folder = tmp_path / "photos"
    for number, name in enumerate(PHOTOS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (number * 30, 90, 120)).save(folder / name, "JPEG")
    return folder


@pytest.fixture
def rows(photos: Path, tmp_path: Path) -> Path:
    """What predict writes of the photos, of a damaged one, and of one that is gone since."""
    error = {
        "path": "bad.jpg",
        "status": "error",
        "error": "x",
        "predictions": [],
        "states": [],
        "objects": [],
    }
    found = [*(predicted(name, pair) for name, pair in PHOTOS.items()), error]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    header = {"header": {"places": [str(photos)]}}
    (tmp_path / "rows.jsonl.run.json").write_text(json.dumps(header), "utf-8")
    return file


@pytest.fixture
def answers(rows: Path, photos: Path) -> Answers:
    return Answers(rows, NotedPlaces([str(photos)]))
