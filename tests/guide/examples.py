"""The examples in README and guide: where they stand, and small data that they run on.

The examples are run as they are written. Only what they would download or train for hours is replaced:
published backbones by the tiny one, datasets of the catalogue by a small drawn one, and settings by the
environment (one step of training). Files that a reader is supposed to have are prepared.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refiner_cli.demo import scenes
from refiner_cli.guide import PAGES
from tests.conftest import ROOT

SMALL = {  # settings in the environment
    "REFINER_BACKBONE": "tiny",
    "REFINER_TRAIN__MAX_STEPS": "1",
    "REFINER_TRAIN__NUM_WORKERS": "0",
}
BACKBONES = {"ViT-L-14", "ViT-B-32"}  # replaced by tiny
CATALOGUE = ("mit-states", "c-gqa", "demo")  # names that stand for the small dataset
PAIRS = [
    (state, thing) for state in ("burnt", "wet", "dirty", "frozen") for thing in ("apple", "pear", "carrot")
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$|^((?:    [^\n]*\n)+)", re.M | re.S)


@dataclass(frozen=True)
class Example:
    """One block of code."""

    language: str  # of the fence; "" for an indented block
    text: str

    def lines(self) -> Iterator[str]:
        """The commands of a shell block, without comments."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield shlex.join(words)


def documents() -> dict[str, Path]:
    """README and the guide's pages by name."""
    folder = ROOT / "refiner_cli" / "guide"
    return {"README": ROOT / "README.md", **{page: folder / f"{page}.md" for page in PAGES}}


def examples(document: Path) -> list[Example]:
    """The code blocks of a page, in their order."""
    found = BLOCK.findall(document.read_text("utf-8"))
    return [Example(language, text or indented) for language, text, indented in found]


def draw_photos(folder: Path) -> None:
    """A folder of ``state_object/`` folders with a few small images each."""
    rng = np.random.default_rng(0)
    for pair in PAIRS:
        place = folder / "_".join(pair)
        place.mkdir(parents=True)
        for number in range(5):
            scenes.scene(pair, PAIRS, rng, clutter=0).save(place / f"{number}.jpg")


@dataclass(frozen=True)
class Prepared:
    """What examples may name without making it themselves, by the name they use."""

    places: dict[str, Path]

    def provide(self, words: list[str], folder: Path) -> None:
        """Put everything that ``words`` name, and that is missing, into ``folder``."""
        for word in words:
            name = word.rstrip("/")
            source, target = self.places.get(name), folder / name
            if source is not None and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


def prepare(folder: Path, dataset: Path, run: Path) -> Prepared:
    """Photos, lists, a score file, and copies of a dataset and of a run, under the names of the examples."""
    folder.mkdir()
    draw_photos(folder / "photos")
    photo = folder / "photos" / "burnt_apple" / "0.jpg"
    (folder / "states.txt").write_text("burnt\nwet\n")
    (folder / "objects.txt").write_text("apple\npear\n")
    (folder / "pairs.txt").write_text("burnt apple\nwet pear\n")
    (folder / "corrections.csv").write_text("path,state,object\nphotos/burnt_apple/0.jpg,wet,apple\n")
    np.savez(
        folder / "scores.npz",
        scores=np.eye(4, dtype=np.float32), truth=np.arange(4), seen=np.array([True, True, False, False]),
        pair_state=np.array([0, 0, 1, 1]), pair_object=np.array([0, 1, 0, 1]),
    )  # fmt: skip
    photos = dict.fromkeys(("photos", "new-photos"), folder / "photos")
    runs = dict.fromkeys(("runs/mit", "runs/mine", "runs/troika"), run)
    lists = {
        "my-states.txt": folder / "states.txt",
        "my-objects.txt": folder / "objects.txt",
        "my-pairs.txt": folder / "pairs.txt",
        "unseen.txt": folder / "pairs.txt",
        "corrections.csv": folder / "corrections.csv",
    }
    detection = {"category": "1", "conf": 0.9, "bbox": [0.1, 0.1, 0.8, 0.8]}
    found = [{"file": "burnt_apple/0.jpg", "detections": [detection]}]
    detections = folder / "detections.json"
    detections.write_text(json.dumps({"images": found, "detection_categories": {"1": "fruit"}}))
    rows = [
        f"{file.relative_to(folder / 'photos').as_posix()},{file.parent.name.replace('_', ',')}"
        for file in sorted((folder / "photos").rglob("*.jpg"))
    ]
    (folder / "labels.csv").write_text("path,state,object\n" + "\n".join(rows) + "\n")
    files = {
        "labels.csv": folder / "labels.csv",
        "detections.json": detections,
        "apple.jpg": photo,
        "other-method.npz": folder / "scores.npz",
        "data/mine": dataset,
    }
    return Prepared({**photos, **runs, **lists, **files})
