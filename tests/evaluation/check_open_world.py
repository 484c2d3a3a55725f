"""Open-world C-GQA at full size, by hand: ``python -m tests.evaluation.check_open_world``.

5,098 images against 413 x 674 = 278,362 pairs at D = 768, with random vectors in place of encoded
ones: scoring, both weighted branches, the streamed summary and the exact metrics. Prints one JSON
line; the bounds are 90 s and 2.5 GB on two CPU cores. On a machine that does other things too, set
OMP_NUM_THREADS=1 and read cpu_seconds: waiting threads of a crowded machine count as computing.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
import torch
from torch.nn import functional as F

from refiner_cli.config import method_section
from refiner_cli.core.models.base import ImageVectors, TextBank
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.data.labels import LabelSpace
from refiner_cli.evaluation.metrics.bias_sweep import sweep
from refiner_cli.evaluation.metrics.streaming import ScoreStream

IMAGES, STATES, OBJECTS, SEEN, WIDTH, BATCH = 5098, 413, 674, 5592, 768, 64


@torch.no_grad()
def main() -> None:
    rng = np.random.default_rng(0)
    states, objects = (tuple(f"{kind}{i}" for i in range(n)) for kind, n in (("s", STATES), ("o", OBJECTS)))
    chosen = rng.choice(STATES * OBJECTS, SEEN, replace=False)
    seen = frozenset((states[i // OBJECTS], objects[i % OBJECTS]) for i in chosen)
    space = LabelSpace(states, objects, (), seen).open_world()

    def unit(count: int) -> torch.Tensor:
        vectors = torch.randn(count, WIDTH)
        return vectors.div_(vectors.norm(dim=1, keepdim=True))

    torch.manual_seed(0)
    bank = TextBank(space, unit(len(space.pairs)), unit(STATES), unit(OBJECTS))
    truth = torch.from_numpy(rng.integers(len(space.pairs), size=IMAGES))
    model = build_model("clip", load_backbone("tiny", "built-in"), method_section("clip")(), space.training())
    calibration = Calibration(0.5, 0.5, 0.0)
    began, computed = time.perf_counter(), time.process_time()
    stream = ScoreStream(space)
    for start in range(0, IMAGES, BATCH):
        rows = slice(start, min(start + BATCH, IMAGES))
        right = bank.pairs[truth[rows]]  # near enough to be found now and then
        noise = [F.normalize(right + 0.25 * torch.randn(right.shape), dim=-1) for _ in range(3)]
        scores = model.score(ImageVectors(*noise), bank)
        stream.update(model.combine(scores, space, calibration), truth[rows])
    metrics = sweep(stream.summary(), space)
    seconds, computed = time.perf_counter() - began, time.process_time() - computed
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024)
    print(
        json.dumps(
            {
                "images": IMAGES,
                "pairs": len(space.pairs),
                "threads": torch.get_num_threads(),
                "seconds": round(seconds, 1),
                "cpu_seconds": round(computed, 1),
                "peak_MB": round(peak),
                **metrics.to_json(),
            }
        )
    )


if __name__ == "__main__":
    main()
