"""Kill -9 at random moments costs nothing: ``python -m tests.inference.check_kills MODEL FOLDER [KILLS]``.

Runs ``refiner predict`` once undisturbed and once killed again and again, and compares the rows.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(model: str, photos: str, out: Path, workers: int) -> list[str]:
    options = ["-o", str(out), "--workers", str(workers), "--device", "cpu"]
    return [sys.executable, "-m", "refiner_cli", "-q", "predict", model, photos, *options]


def kill_at_random(model: str, photos: str, out: Path, kills: int, dice: random.Random, workers: int) -> int:
    """Start the command, kill it some time after its first new row, again and again, then let it finish."""
    done = 0
    for _ in range(kills):
        before = out.stat().st_size if out.exists() else 0
        process = subprocess.Popen(command(model, photos, out, workers), stderr=subprocess.DEVNULL)
        while process.poll() is None and (not out.exists() or out.stat().st_size <= before):
            time.sleep(0.002)
        time.sleep(dice.random() * 0.15)
        if process.poll() is None:
            process.kill()
            done += 1
        process.wait()
    subprocess.run(command(model, photos, out, workers), check=False, stderr=subprocess.DEVNULL)
    return done


def main(model: str, photos: str, kills: int = 20) -> None:
    dice = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        whole, torn = Path(folder) / "whole.jsonl", Path(folder) / "torn.jsonl"
        subprocess.run(command(model, photos, whole, 0), check=False, stderr=subprocess.DEVNULL)
        done = kill_at_random(model, photos, torn, kills, dice, 1)
        rows = [sorted(file.read_bytes().splitlines()) for file in (whole, torn)]
    print(f"{len(rows[0])} rows, {done} kills, rows are the same: {rows[0] == rows[1]}")
    sys.exit(rows[0] != rows[1])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 20)
