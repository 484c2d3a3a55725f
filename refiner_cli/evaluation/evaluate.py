"""Run a model over a split once and feed any number of score streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch

from refiner_cli.core.batches import Batch, Plain, batches, in_order
from refiner_cli.core.device import computing
from refiner_cli.core.model import Calibration, Model, TextBank
from refiner_cli.data.benchmark import Benchmark, Split
from refiner_cli.data.images import Preprocess
from refiner_cli.data.labels import LabelSpace
from refiner_cli.evaluation.streaming import ScoreStream
from refiner_cli.evaluation.sweep import Metrics, Protocol, sweep

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)  # candidates for b_s and b_o
Progress = Callable[[int, int], None]  # images done, images in all


def silent(done: int, total: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class Setting:
    """How to run: what the machine is asked for, and nothing that changes a result but precision."""

    precision: torch.dtype = torch.float32
    batch: int = 64
    workers: int = 0


@dataclass
class Job:
    """One stream to fill: a label space, the calibration to score with, and the digest it grows."""

    space: LabelSpace
    calibration: Calibration
    stream: ScoreStream = field(init=False)

    def __post_init__(self) -> None:
        self.stream = ScoreStream(self.space)


def image_batches(model: Model, benchmark: Benchmark, split: Split, setting: Setting) -> Iterator[Batch]:
    """The images of a split, in order, preprocessed as the backbone wants."""
    files = list(benchmark.paths(split))
    transform = Plain(Preprocess(model.backbone.spec.preprocess))
    order = in_order(len(files), setting.batch)
    return batches(files, transform, order, device=model.device, workers=setting.workers)


@torch.no_grad()
def fill(
    model: Model,
    benchmark: Benchmark,
    split: Split,
    jobs: Sequence[Job],
    setting: Setting,
    progress: Progress = silent,
) -> None:
    """Score every image of ``split`` for every job; each image is encoded once, each score block
    computed once a label space and dropped again."""
    model.eval()
    samples = benchmark.samples[split]
    pairs = [sample.pair for sample in samples]
    with computing(model.device, setting.precision):
        by_space: dict[int, tuple[TextBank, list[Job], torch.Tensor]] = {}
        for job in jobs:
            if id(job.space) not in by_space:
                truth = torch.from_numpy(job.space.indices(pairs))
                by_space[id(job.space)] = (model.encode_pairs(job.space), [], truth)
            by_space[id(job.space)][1].append(job)
        done = 0
        for batch in image_batches(model, benchmark, split, setting):
            images = model.encode_images(batch.images)
            for bank, group, truth in by_space.values():
                scores = model.score(images, bank)
                for job in group:
                    job.stream.update(model.combine(scores, bank.space, job.calibration), truth[batch.rows])
            done += len(batch.rows)
            progress(done, len(samples))


def evaluate(
    model: Model,
    benchmark: Benchmark,
    split: Split,
    spaces: dict[str, LabelSpace],
    setting: Setting,
    *,
    protocol: Protocol = "exact",
    progress: Progress = silent,
) -> dict[str, Metrics]:
    """Metrics by world, with the calibration that the model carries."""
    jobs = {world: Job(space, model.calibration) for world, space in spaces.items()}
    fill(model, benchmark, split, list(jobs.values()), setting, progress)
    return {world: sweep(job.stream.digest(), job.space, protocol) for world, job in jobs.items()}


def calibrate(
    model: Model, benchmark: Benchmark, setting: Setting, progress: Progress = silent
) -> tuple[Calibration, Metrics]:
    """Choose the inference weights on the validation split: the best closed-world AUC.

    Of equals the smallest weights win. The test split is not read.
    """
    space = benchmark.label_space("val")
    jobs = [Job(space, Calibration(b_s, b_o)) for b_s, b_o in candidates(model)]
    fill(model, benchmark, "val", jobs, setting, progress)
    found = [(job, sweep(job.stream.digest(), space)) for job in jobs]
    job, metrics = max(found, key=lambda pair: pair[1].AUC)
    return Calibration(job.calibration.state_weight, job.calibration.object_weight, metrics.bias), metrics


def candidates(model: Model) -> list[tuple[float, float]]:
    """The grid of inference weights, smallest first; a branch that the model lacks gets no weight."""
    states = WEIGHTS if model.has_state_branch else WEIGHTS[:1]
    objects = WEIGHTS if model.has_object_branch else WEIGHTS[:1]
    return sorted(product(states, objects), key=sum)
