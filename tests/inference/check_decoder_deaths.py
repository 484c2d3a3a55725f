"""Decoding processes killed at random: ``python -m tests.inference.check_decoder_deaths MODEL [MOMENTS]``.

Runs ``refiner predict --workers 2`` as often as needed for MOMENTS kills (SIGKILL) of its decoding
processes, in a third of them while the main process is stopped. Every run must end by itself, with exit
code 0 and a good row for every image. Linux only.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from tests.conftest import parse_rows

PHOTOS = 300
PATIENCE = 600.0  # seconds for one run; without any kill it takes some twenty


def draw(folder: Path) -> None:
    for i in range(20):
        Image.effect_noise((1200, 900), 20 + i).convert("RGB").save(folder / f"{i:03}.jpg")
    for i in range(20, PHOTOS):
        os.link(folder / f"{i % 20:03}.jpg", folder / f"{i:03}.jpg")


def decoders(parent: int) -> list[int]:
    """The decoding processes of a process."""
    found = []
    for children in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in children.read_text().split():
            try:
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
            except OSError:
                continue
    return found


def disturb(process: subprocess.Popen[bytes], number: int, dice: random.Random) -> int:
    """Kill one decoding process, or two at once, at a random moment; return how many kills there were."""
    time.sleep(dice.random() * 0.8)
    victims = decoders(process.pid)
    if process.poll() is not None or not victims:
        return 0
    stopped = number % 3 == 0
    if stopped:
        process.send_signal(signal.SIGSTOP)
    victims = dice.sample(victims, min(len(victims), dice.choice([1, 1, 2])))
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    if stopped:
        time.sleep(dice.random() * 0.5)
        process.send_signal(signal.SIGCONT)
    return 1


def main(model: str, moments: int = 60) -> None:
    dice, done, runs, bad = random.Random(5), 0, 0, []
    with tempfile.TemporaryDirectory() as place:
        photos, out = Path(place) / "photos", Path(place) / "out.jsonl"
        photos.mkdir()
        draw(photos)
        command = [sys.executable, "-m", "refiner_cli", "-q", "predict", model, str(photos), "-o", str(out),
                   "--workers", "2", "--device", "cpu", "--overwrite"]  # fmt: skip
        while done < moments:
            process = subprocess.Popen(command)
            began, runs = time.monotonic(), runs + 1
            while process.poll() is None and time.monotonic() - began < PATIENCE:
                if done < moments:
                    done += disturb(process, done, dice)
                else:
                    time.sleep(0.1)
            if process.poll() is None:
                bad.append("a run hangs")
                process.kill()
                process.wait()
                continue
            rows = parse_rows(out.read_text("utf-8"))
            bad += [row["error"] for row in rows if row["status"] != "ok"]
            if process.returncode or len({row["path"] for row in rows}) != PHOTOS:
                bad.append(f"exit {process.returncode}, {len(rows)} rows")
    print(f"{done} moments in {runs} runs: {len(bad)} faults {bad[:3]}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
