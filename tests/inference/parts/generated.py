"""Plans of generated names, and the command that predicts into parts, for tests; it imports no PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from refiner_cli.inference.parts.plan import PartPlan, open_plan
from refiner_cli.inference.scan import ImageFile
from refiner_cli.inference.sources.places import Places
from refiner_cli.inference.sources.source import PlaceSource

MADE = {"model": "m", "top_k": 1, "batch": 4}


class NamedImages(PlaceSource):
    """A listing of generated names."""

    def __init__(self, count: int) -> None:
        super().__init__("generated")
        self.count = count

    def images(self) -> Iterator[ImageFile]:
        yield from (ImageFile(Path(f"{i:08d}.jpg"), f"{i:08d}.jpg") for i in range(self.count))


def plan_of(folder: Path, count: int = 20, size: int = 3) -> PartPlan:
    return open_plan(folder, MADE, Places([NamedImages(count)]), ".jsonl", size)


def predict_command(model: str, photos: Path, folder: Path, size: int, *options: str) -> list[str]:
    """``refiner predict -o DIR/`` on the CPU, with ``size`` images a part and at once."""
    return [sys.executable, "-m", "refiner_cli", "-q", "predict", model, str(photos), "-o", f"{folder}/",
            "--part-size", str(size), "--batch", str(size), "--device", "cpu", *options]  # fmt: skip
