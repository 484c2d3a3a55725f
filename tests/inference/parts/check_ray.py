"""A worker of Ray that is killed costs no row: ``python -m tests.inference.parts.check_ray MODEL``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from refiner_cli.inference.parts.plan import read_plan
from tests.inference.parts.check_parts import content
from tests.inference.parts.generated import predict_command
from tests.inference.sources.packing import draw_noise


def find_actors(root: int) -> list[int]:
    """The processes below one that are actors of Ray."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, name = (folder / "stat").read_text(), (folder / "cmdline").read_text()
        except OSError:  # ended meanwhile
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
        names[int(folder.name)] = name

    def is_below(pid: int) -> bool:
        while pid in parents and pid != root:
            pid = parents[pid]
        return pid == root

    return [pid for pid, name in names.items() if "UnitActor" in name and is_below(pid)]


def main(model: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        photos = Path(place) / "photos"
        draw_noise(photos, 400)
        plans = {}
        for engine in ("local", "ray"):
            folder = Path(place) / engine
            command = predict_command(model, photos, folder, 8, "--engine", engine)
            with subprocess.Popen(command) as process:
                while (
                    engine == "ray" and process.poll() is None and len(list(folder.glob("parts/*.jsonl"))) < 3
                ):
                    time.sleep(0.01)
                actors = find_actors(process.pid) if engine == "ray" else []
                for actor in actors[:1]:
                    os.kill(actor, signal.SIGKILL)
                    print(f"{len(actors)} actors, one killed", flush=True)
                code = process.wait()
            plans[engine] = read_plan(folder)
            print(
                f"{engine}: exit {code}, {plans[engine].count_done()} of {plans[engine].units} units",
                flush=True,
            )
        same = content(plans["local"]) == content(plans["ray"])
    print(f"rows equal: {same}", flush=True)
    sys.exit(not same)


if __name__ == "__main__":
    main(sys.argv[1])
