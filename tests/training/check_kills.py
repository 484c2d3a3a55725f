"""Kill a training -9 at random moments, resume it every time, and compare it with one left alone.

Command: ``python -m tests.training.check_kills [KILLS]``. A few minutes for 10.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

from refiner_cli.core.model_io.checkpoint import read_tensors
from refiner_cli.demo.dataset import DemoSize, make_demo
from refiner_cli.training.run_dir import Run
from tests.training.processes import SETTINGS, begin, rows, steps, wait_until

A_KILL = 2  # steps between two


def main(kills: int) -> None:
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_demo(folder / "demo", size=DemoSize(train=2, val=1, test=1))
        more = (*SETTINGS, "--set", "train.batch_size=16", "--set", "train.checkpoint_minutes=0",
                "--set", "train.epochs=100", "--set", f"train.max_steps={A_KILL * (kills + 1)}")  # fmt: skip
        whole, parts = folder / "whole", folder / "parts"
        alone = begin(folder / "demo", "--out", whole, *more)
        first: tuple[object, ...] = (folder / "demo", "--out", parts, *more)
        moments = []
        for kill in range(kills):
            process = begin(*(first if kill == 0 else ("--resume", "--out", parts)))
            wait_until(lambda kill=kill: steps(parts) >= A_KILL * kill + 1, process)
            time.sleep(chance.uniform(0, 0.5))  # anywhere: in a step, a validation, a checkpoint
            process.kill()
            process.communicate()
            moments.append(steps(parts))
        last = begin("--resume", "--out", parts)
        print(last.communicate()[1].splitlines()[-1], alone.communicate()[1].splitlines()[-1], sep="\n")
        ours, theirs = (read_tensors(Run.open(run).checkpoints()[-1]) for run in (parts, whole))
        equal = all(ours[name].equal(theirs[name]) for name in theirs) and ours.keys() == theirs.keys()
        print(f"killed after steps {moments}")
        print(f"weights identical: {equal}; metrics identical: {rows(parts) == rows(whole)}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
