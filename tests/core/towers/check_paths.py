"""Training the demo with prefix cache and chunks beside the plain text path: the losses of every step.

By hand: ``python -m tests.core.towers.check_paths`` trains 50 steps twice and fails beyond 1e-4.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from refiner_cli.data.benchmark import Benchmark, load_benchmark
from refiner_cli.demo.dataset import DemoSize, make_demo
from refiner_cli.training.events import StepDone
from tests.training.test_trainer import begin


def losses(folder: Path, benchmark: Benchmark, steps: int, *, plain: bool) -> list[float]:
    """Losses of ``steps`` training steps, the validations between them left out."""
    more = {"train.text_chunk_size": 10_000 if plain else 16, "train.batch_size": 16, "train.epochs": 100}
    training = begin(folder, benchmark, **more, **{"train.max_steps": steps})
    if plain:
        training.model.backbone.text.uses_prefix_cache = False
    found: list[float] = []
    while len(found) < steps:
        for batch in training.rest_of_epoch():
            done, _ = training.train_step(batch, lambda: False)
            assert isinstance(done, StepDone)
            found.append(done.loss)
            if len(found) == steps:
                break
    return found


def gap(folder: Path, benchmark: Benchmark, steps: int) -> float:
    """The largest difference of a loss: prefix cache and chunks of 16, or prompts in full and at once."""
    ours = losses(folder / "cached", benchmark, steps, plain=False)
    plain = losses(folder / "plain", benchmark, steps, plain=True)
    return max(abs(a - b) for a, b in zip(ours, plain, strict=True))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        make_demo(root / "demo", size=DemoSize(train=4, val=1, test=1))
        largest = gap(root, load_benchmark(root / "demo"), 50)
    sys.stdout.write(f"50 steps, largest difference of a loss: {largest:.2e}\n")
    sys.exit(largest > 1e-4)
