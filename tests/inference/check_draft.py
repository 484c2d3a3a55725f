"""What smaller JPEG decoding changes: ``python -m tests.inference.check_draft MODEL FOLDER [SIDE COUNT]``.

The photos of the folder, enlarged to SIDE pixels as a camera would have taken them, are recognised
after full decoding and after the decoder's own scaling.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

import refiner_cli
from refiner_cli.data.decode import read
from refiner_cli.inference.scan import scan


def main(model: str, folder: str, side: int = 1600, count: int = 400) -> None:
    recogniser = refiner_cli.load(model, device="cpu")
    crop = recogniser.preprocess.crop
    found = list(scan([Path(folder)]))
    answers, seconds = [], [0.0, 0.0]
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "large.jpg"
        for one in found[:: max(1, len(found) // count)]:
            photo = read(one.file)
            factor = side / min(photo.size)
            size = (round(photo.width * factor), round(photo.height * factor))
            photo.resize(size, Image.Resampling.BICUBIC).save(file, quality=92)
            images = []
            for way, wanted in enumerate((None, crop.side)):
                began = time.perf_counter()
                images.append(crop.fit(read(file, wanted)))
                seconds[way] += time.perf_counter() - began
            made = [next(recogniser.predict([image], top_k=1)).compositions[0] for image in images]
            answers.append([(guess.state, guess.object) for guess in made])
    changed = sum(full != scaled for full, scaled in answers)
    print(
        f"{changed} of {len(answers)} top-1 answers change ({changed / len(answers):.1%}); "
        f"decoding is {seconds[0] / seconds[1]:.1f} times as fast"
    )


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:5]))
