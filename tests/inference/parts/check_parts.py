"""Four processes share parts, two are killed and one comes back: ``... check_parts [ROUNDS [MODEL]]``.

With a model the processes are ``refiner predict -o DIR/``; without, they write the names of the images.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from refiner_cli.inference.parts.plan import LOG, PartPlan, read_plan
from tests.inference.parts.generated import plan_of, predict_command
from tests.inference.parts.test_parts import start_worker
from tests.inference.sources.packing import draw_noise

WORKERS, KILLED = 4, 2


def content(plan: PartPlan) -> str:
    """A digest of all parts; of a part that is missing "-"."""
    digest = hashlib.sha256()
    for unit in range(plan.units):
        digest.update(plan.part(unit).read_bytes() if plan.is_done(unit) else b"-")
    return digest.hexdigest()


def start(folder: Path, model: str | None, photos: Path) -> subprocess.Popen[bytes]:
    if model is None:
        return start_worker(folder, 0.05, 5)
    command = predict_command(model, photos, folder, 4)
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def disturbed(folder: Path, model: str | None, photos: Path, dice: random.Random) -> PartPlan:
    """Kill two of four processes at random moments while parts come, and start one again."""
    if model is None:
        plan_of(folder, 200, 2)
    team = [start(folder, model, photos) for _ in range(WORKERS)]
    victims = dice.sample(team, KILLED)
    for number, victim in enumerate(victims):
        while len(list(folder.glob("parts/*.jsonl"))) <= 3 * number and victim.poll() is None:
            time.sleep(0.005)
        time.sleep(dice.random() * 0.3)
        victim.kill()
    team.append(start(folder, model, photos))
    for one in team:
        one.communicate(timeout=900)
    return read_plan(folder)


def main(rounds: int = 10, model: str | None = None) -> None:
    dice, wrong = random.Random(0), 0
    with tempfile.TemporaryDirectory() as place:
        photos = Path(place) / "photos"
        draw_noise(photos, 120)
        whole = Path(place) / "whole"
        if model is None:
            plan_of(whole, 200, 2)
        start(whole, model, photos).communicate()
        expected = content(read_plan(whole))
        for number in range(rounds):
            plan = disturbed(Path(place) / f"round-{number}", model, photos, dice)
            lines = [line for file in (plan.folder / LOG).iterdir() for line in file.read_text().splitlines()]
            units = [json.loads(line)["unit"] for line in lines]
            good = content(plan) == expected and len(units) == len(set(units))
            wrong += not good
            done = f"{plan.count_done()} of {plan.units} units, {len(units)} noted"
            print(f"round {number}: {done}, as undisturbed: {good}", flush=True)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10, sys.argv[2] if len(sys.argv) > 2 else None)
