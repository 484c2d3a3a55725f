"""Run a model over a split once and feed any number of score streams."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from types import MappingProxyType

import numpy as np
import torch

from refiner_cli.core.models.base import Calibration, Model, TextBank
from refiner_cli.core.runtime.device import computing
from refiner_cli.core.runtime.loader import Batch, Plain, batches, in_order
from refiner_cli.data.benchmark import Benchmark, Split
from refiner_cli.data.images import Preprocess
from refiner_cli.data.labels import IntArray, LabelSpace, Pair
from refiner_cli.errors import DatasetError
from refiner_cli.evaluation.feasibility.feasibility import Prior
from refiner_cli.evaluation.metrics.bias_sweep import Metrics, Protocol, sweep
from refiner_cli.evaluation.metrics.bootstrap import Measured, differences
from refiner_cli.evaluation.metrics.streaming import ScoreStream

DRAWS = 200  # resampled validation sets that weights above zero are proved on
CENTRE_IMAGES = 8  # training images of each pair that its centre is measured on
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


class Taker(typing.Protocol):
    """Whatever wants the scores of a split: its candidates, what to combine with, and where they go."""

    @property
    def space(self) -> LabelSpace: ...
    @property
    def calibration(self) -> Calibration: ...
    def take(self, scores: torch.Tensor, truth: torch.Tensor) -> None: ...


@dataclass
class Job:
    """One stream to fill: a label space, what to score with, and the digest it grows."""

    space: LabelSpace
    calibration: Calibration
    prior: Prior | None = None  # what is held of the pairs before any image is seen
    stream: ScoreStream = field(init=False)

    def __post_init__(self) -> None:
        self.stream = ScoreStream(self.space, self.prior.allowed if self.prior else None)

    def take(self, scores: torch.Tensor, truth: torch.Tensor) -> None:
        """Feed combined scores ``B x P`` and their truths to the stream."""
        self.stream.update(self.prior.apply(scores) if self.prior else scores, truth)

    def measured(self) -> Measured:
        return Measured(self.stream.digest(), self.space)


def image_batches(
    model: Model, benchmark: Benchmark, split: Split, setting: Setting, rows: Sequence[int] | None = None
) -> Iterator[Batch]:
    """The images of a split (or those ``rows`` of it), in order, preprocessed as the backbone wants."""
    files = list(benchmark.paths(split))
    transform = Plain(Preprocess(model.backbone.spec.preprocess))
    chosen = range(len(files)) if rows is None else rows
    order = [[chosen[i] for i in batch] for batch in in_order(len(chosen), setting.batch)]
    return batches(files, transform, order, device=model.device, workers=setting.workers)


@torch.no_grad()
def fill(
    model: Model,
    benchmark: Benchmark,
    split: Split,
    jobs: Sequence[Taker],
    setting: Setting,
    progress: Progress = silent,
) -> None:
    """Score every image of ``split`` for every job; each image is encoded once, each score block
    computed once a label space and dropped again."""
    model.eval()
    samples = benchmark.samples[split]
    pairs = [sample.pair for sample in samples]
    with computing(model.device, setting.precision):
        by_space: dict[int, tuple[TextBank, list[Taker], torch.Tensor]] = {}
        for job in jobs:
            if id(job.space) not in by_space:
                truth = torch.from_numpy(job.space.indices(pairs))
                by_space[id(job.space)] = (model.encode_pairs(job.space), [], truth)
            by_space[id(job.space)][1].append(job)
        done = 0
        for batch in image_batches(model, benchmark, split, setting):
            images = model.read(batch.images)
            for bank, group, truth in by_space.values():
                scores = model.score(images, bank)
                combined: dict[Calibration, torch.Tensor] = {}
                for job in group:
                    if job.calibration not in combined:
                        combined = {job.calibration: model.combine(scores, bank.space, job.calibration)}
                    job.take(combined[job.calibration], truth[batch.rows])
            done += len(batch.rows)
            progress(done, len(samples))


def measure(
    model: Model,
    benchmark: Benchmark,
    split: Split,
    spaces: dict[str, LabelSpace],
    setting: Setting,
    *,
    priors: Mapping[str, Prior | None] = MappingProxyType({}),
    progress: Progress = silent,
) -> dict[str, Measured]:
    """The digest of a split in each world, with the calibration that the model carries."""
    jobs = {world: Job(space, model.calibration, priors.get(world)) for world, space in spaces.items()}
    fill(model, benchmark, split, list(jobs.values()), setting, progress)
    return {world: job.measured() for world, job in jobs.items()}


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
    found = measure(model, benchmark, split, spaces, setting, progress=progress)
    return {world: sweep(m.digest, m.space, protocol) for world, m in found.items()}


def check_same_labels(known: LabelSpace, benchmark: Benchmark) -> None:
    """Raise DatasetError unless the benchmark has the states, objects and seen pairs of ``known``."""
    here = benchmark.vocabulary
    for what, ours, theirs in (
        ("state", known.states, here.states),
        ("object", known.objects, here.objects),
        ("training pair", sorted(known.seen_pairs), sorted(here.seen_pairs)),
    ):
        odd = sorted({*map(spelled, ours)} ^ {*map(spelled, theirs)})
        if odd:
            side = "only the model" if odd[0] in set(map(spelled, ours)) else "only the dataset"
            raise DatasetError(
                f"The label space of {benchmark.root} is not the one that the model was trained on: "
                f"{side} has the {what} '{odd[0]}' ({len(odd)} differ).",
                hint="Evaluate on the dataset that it was trained on, or train on this one.",
            )


def spelled(name: str | Pair) -> str:
    return name if isinstance(name, str) else " ".join(name)


def calibrate(
    model: Model, benchmark: Benchmark, setting: Setting, progress: Progress = silent
) -> tuple[Calibration, Metrics]:
    """Choose the inference weights on the validation split: the best closed-world AUC.

    Weights above zero have to be surely better than none, by a paired bootstrap: the best of many
    candidates looks better than it is, most where validation has few unseen pairs. Of equals the smallest
    win. The test split is not read.
    """
    measure_hubs(model, benchmark, setting, progress)
    space = benchmark.label_space("val")
    jobs = [Job(space, Calibration(b_s, b_o)) for b_s, b_o in candidates(model)]
    fill(model, benchmark, "val", jobs, setting, progress)
    found = [(job, sweep(job.stream.digest(), space)) for job in jobs]
    plain, best = found[0], max(found, key=lambda pair: pair[1].AUC)
    if best is not plain and not surely_better(plain[0].measured(), best[0].measured()):
        best = plain
    job, metrics = best
    return Calibration(job.calibration.state_weight, job.calibration.object_weight, metrics.bias), metrics


def surely_better(plain: Measured, best: Measured) -> bool:
    """Whether the closed-world AUC of ``best`` is above that of ``plain`` by more than chance."""
    return differences(plain, best, draws=DRAWS)["AUC"].interval.low > 0


@torch.no_grad()
def measure_hubs(model: Model, benchmark: Benchmark, setting: Setting, progress: Progress = silent) -> None:
    """For a model that levels out hubs: the centres of some training images of each seen pair."""
    if model.hubs is None:
        return
    model.eval()
    pairs = [sample.pair for sample in benchmark.samples["train"]]
    truth = benchmark.label_space("train").training().indices(pairs)
    rows = [int(row) for pair in np.unique(truth) for row in some(np.flatnonzero(truth == pair))]
    found = []
    with computing(model.device, setting.precision):
        for batch in image_batches(model, benchmark, "train", setting, rows):
            found.append(model.read(batch.images).composition)
            progress(0, len(rows))
    model.hubs.measure(torch.cat(found), torch.from_numpy(truth[rows]).to(model.device))


def some(rows: IntArray) -> IntArray:
    """At most ``CENTRE_IMAGES`` of them, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), CENTRE_IMAGES)).round().astype(np.int64)]


def candidates(model: Model) -> list[tuple[float, float]]:
    """The grid of inference weights, smallest first; a branch that the model lacks gets no weight."""
    states = WEIGHTS if model.has_state_branch else WEIGHTS[:1]
    objects = WEIGHTS if model.has_object_branch else WEIGHTS[:1]
    return sorted(product(states, objects), key=sum)
