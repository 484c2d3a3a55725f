"""Run a model over a split once and feed any number of score streams."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from refiner_cli.core.models.base import Calibration, Model, TextBank
from refiner_cli.core.runtime.device import RuntimeOptions, autocast
from refiner_cli.core.runtime.loader import EvalTransform, ImageBatch, load_batches, sequential_batches
from refiner_cli.data.benchmark import Benchmark, Split
from refiner_cli.data.images import Preprocess
from refiner_cli.data.labels import LabelSpace, Pair
from refiner_cli.errors import DatasetError
from refiner_cli.evaluation.feasibility.feasibility import FeasibilityAdjustment
from refiner_cli.evaluation.metrics.bias_sweep import Metrics, Protocol, sweep
from refiner_cli.evaluation.metrics.bootstrap import MeasuredSplit
from refiner_cli.evaluation.metrics.streaming import ScoreStream

Progress = Callable[[int, int], None]  # images done, images in all


def silent(done: int, total: int) -> None:
    """No progress."""


class ScoreConsumer(typing.Protocol):
    """Whatever wants the scores of a split: its candidates, what to combine with, and where they go."""

    @property
    def space(self) -> LabelSpace: ...
    @property
    def calibration(self) -> Calibration: ...
    def update(self, scores: torch.Tensor, truth: torch.Tensor) -> None: ...


@dataclass
class WorldScorer:
    """One stream to fill: a label space, what to score with, and the digest it grows."""

    space: LabelSpace
    calibration: Calibration
    prior: FeasibilityAdjustment | None = None  # what is held of the pairs before any image is seen
    stream: ScoreStream = field(init=False)

    def __post_init__(self) -> None:
        self.stream = ScoreStream(self.space, self.prior.allowed if self.prior else None)

    def update(self, scores: torch.Tensor, truth: torch.Tensor) -> None:
        """Feed combined scores ``B x P`` and their truths to the stream."""
        self.stream.update(self.prior.apply(scores) if self.prior else scores, truth)

    def measured(self) -> MeasuredSplit:
        return MeasuredSplit(self.stream.summary(), self.space)


def image_batches(
    model: Model,
    benchmark: Benchmark,
    split: Split,
    setting: RuntimeOptions,
    rows: Sequence[int] | None = None,
) -> Iterator[ImageBatch]:
    """The images of a split (or those ``rows`` of it), in order, preprocessed as the backbone wants."""
    files = list(benchmark.paths(split))
    transform = EvalTransform(Preprocess(model.backbone.spec.preprocess))
    chosen = range(len(files)) if rows is None else rows
    order = [[chosen[i] for i in batch] for batch in sequential_batches(len(chosen), setting.batch_size)]
    return load_batches(files, transform, order, device=model.device, workers=setting.num_workers)


@torch.no_grad()
def score_split(
    model: Model,
    benchmark: Benchmark,
    split: Split,
    jobs: Sequence[ScoreConsumer],
    setting: RuntimeOptions,
    progress: Progress = silent,
) -> None:
    """Score every image of ``split`` for every job; each image is encoded once, each score block
    computed once a label space and dropped again."""
    model.eval()
    samples = benchmark.samples[split]
    pairs = [sample.pair for sample in samples]
    with autocast(model.device, setting.precision):
        by_space: dict[int, tuple[TextBank, list[ScoreConsumer], torch.Tensor]] = {}
        for job in jobs:
            if id(job.space) not in by_space:
                truth = torch.from_numpy(job.space.indices(pairs))
                by_space[id(job.space)] = (model.encode_pairs(job.space), [], truth)
            by_space[id(job.space)][1].append(job)
        done = 0
        for batch in image_batches(model, benchmark, split, setting):
            images = model.encode_images_tta(batch.images)
            for bank, group, truth in by_space.values():
                scores = model.score(images, bank)
                combined: dict[Calibration, torch.Tensor] = {}
                for job in group:
                    if job.calibration not in combined:
                        combined = {job.calibration: model.combine(scores, bank.space, job.calibration)}
                    job.update(combined[job.calibration], truth[batch.rows])
            done += len(batch.rows)
            progress(done, len(samples))


def measure_split(
    model: Model,
    benchmark: Benchmark,
    split: Split,
    spaces: dict[str, LabelSpace],
    setting: RuntimeOptions,
    *,
    priors: Mapping[str, FeasibilityAdjustment | None] = MappingProxyType({}),
    progress: Progress = silent,
) -> dict[str, MeasuredSplit]:
    """The digest of a split in each world, with the calibration that the model carries."""
    jobs = {
        world: WorldScorer(space, model.calibration, priors.get(world)) for world, space in spaces.items()
    }
    score_split(model, benchmark, split, list(jobs.values()), setting, progress)
    return {world: job.measured() for world, job in jobs.items()}


def evaluate_worlds(
    model: Model,
    benchmark: Benchmark,
    split: Split,
    spaces: dict[str, LabelSpace],
    setting: RuntimeOptions,
    *,
    protocol: Protocol = "exact",
    progress: Progress = silent,
) -> dict[str, Metrics]:
    """Metrics by world, with the calibration that the model carries."""
    found = measure_split(model, benchmark, split, spaces, setting, progress=progress)
    return {world: sweep(m.summary, m.space, protocol) for world, m in found.items()}


def check_same_labels(known: LabelSpace, benchmark: Benchmark) -> None:
    """Raise DatasetError unless the benchmark has the states, objects and seen pairs of ``known``."""
    here = benchmark.vocabulary
    for what, ours, theirs in (
        ("state", known.states, here.states),
        ("object", known.objects, here.objects),
        ("training pair", sorted(known.seen_pairs), sorted(here.seen_pairs)),
    ):
        odd = sorted({*map(label_name, ours)} ^ {*map(label_name, theirs)})
        if odd:
            side = "only the model" if odd[0] in set(map(label_name, ours)) else "only the dataset"
            raise DatasetError(
                f"The label space of {benchmark.root} is not the one that the model was trained on: "
                f"{side} has the {what} '{odd[0]}' ({len(odd)} differ).",
                hint="Evaluate on the dataset that it was trained on, or train on this one.",
            )


def label_name(name: str | Pair) -> str:
    return name if isinstance(name, str) else " ".join(name)
