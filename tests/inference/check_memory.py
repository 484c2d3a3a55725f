"""Peak memory does not grow with the images: ``python -m tests.inference.check_memory MODEL [FEW MANY]``.

The generated images are links to a few different files, so that the disk stays small.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

DIFFERENT = 50


def own_peak() -> float:
    """MiB that this process has held at most; what getrusage says starts with the peak of its parent."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def peak(model: str, photos: Path, out: Path) -> float:
    """MiB that ``refiner predict`` holds at most, with its own children apart."""
    script = (
        "import sys\n"
        "from refiner_cli.__main__ import main\n"
        "from tests.inference.check_memory import own_peak\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(own_peak())"
    )
    options = ["-o", str(out), "--workers", "1", "--top-k", "3", "--device", "cpu"]
    arguments = ["-q", "predict", model, str(photos), *options]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout)


def main(model: str, few: int = 5_000, many: int = 50_000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for i in range(DIFFERENT):
            Image.effect_noise((120, 100), 20 + i).convert("RGB").save(root / f"{i}.jpg")
        peaks = []
        for count in (few, many):
            photos = root / f"photos-{count}"
            photos.mkdir()
            for i in range(count):
                os.link(root / f"{i % DIFFERENT}.jpg", photos / f"{i:06}.jpg")
            peaks.append(peak(model, photos, root / f"out-{count}.jsonl"))
    ratio = peaks[1] / peaks[0]
    print(f"peak {peaks[0]:.0f} MiB over {few}, {peaks[1]:.0f} MiB over {many} images: {ratio:.3f} times")
    sys.exit(ratio > 1.1)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:4]))
