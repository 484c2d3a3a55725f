"""Run a model over a split once and feed the scores to any number of consumers."""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from refiner_cli.core.models.base import Model, TextBank
from refiner_cli.core.models.calibration import Calibration, Confidence, Temperatures
from refiner_cli.core.runtime.device import RuntimeOptions, autocast
from refiner_cli.core.runtime.loader import EvalTransform, ImageBatch, load_batches, sequential_batches
from refiner_cli.data.benchmark import Benchmark, Split
from refiner_cli.data.images import Preprocess
from refiner_cli.data.labels import LabelSpace, Pair
from refiner_cli.errors import DatasetError
from refiner_cli.evaluation.feasibility.feasibility import FeasibilityAdjustment
from refiner_cli.evaluation.metrics.bias_sweep import Metrics, sweep
from refiner_cli.evaluation.metrics.bootstrap import MeasuredSplit
from refiner_cli.evaluation.metrics.confidence import ConfidenceStream, MeasuredConfidence
from refiner_cli.evaluation.metrics.seen_unseen import SweepProtocol
from refiner_cli.evaluation.metrics.streaming import ScoreStream
from refiner_cli.evaluation.score_writer import ScoreWriter
from refiner_cli.inference.encoded import EncodedBenchmark

ProgressFn = Callable[[int, int], None]  # images done, images in total


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


class ScoreConsumer(typing.Protocol):
    """Receives the scores of a split, over its own candidates and with its own inference weights."""

    @property
    def space(self) -> LabelSpace: ...
    @property
    def calibration(self) -> Calibration: ...
    def update(self, scores: torch.Tensor, truth: torch.Tensor) -> None: ...


@dataclass
class WorldScorer:
    """Scores of one world, after the feasibility adjustment, reduced to a summary."""

    space: LabelSpace
    calibration: Calibration
    adjustment: FeasibilityAdjustment | None = None
    bias: float | None = None  # of the probabilities; None: they are not measured
    keep: ScoreWriter | None = None
    stream: ScoreStream = field(init=False)
    confidence: ConfidenceStream | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        allowed = self.adjustment.allowed if self.adjustment else None
        if self.keep:
            self.keep.begin(self.space, allowed)
        self.stream = ScoreStream(self.space, allowed)
        if self.bias is not None:
            sets = (Temperatures(), self.fitted.temperatures)
            self.confidence = ConfidenceStream(self.space, sets, self.bias, allowed)

    @property
    def fitted(self) -> Confidence:
        """What calibration found for this world."""
        return self.calibration.confidence(is_open=self.space.is_open)

    def update(self, scores: torch.Tensor, truth: torch.Tensor) -> None:
        """Feed combined scores ``B x P`` and their truths to the stream."""
        adjusted = self.adjustment.apply(scores) if self.adjustment else scores
        self.stream.update(adjusted, truth)
        if self.keep:
            self.keep.update(adjusted, truth)
        if self.confidence:
            self.confidence.update(adjusted, truth)

    def measured(self) -> MeasuredSplit:
        confidence = None
        if self.confidence:
            before, after = self.confidence.results()
            confidence = MeasuredConfidence(before, after, self.fitted)
        return MeasuredSplit(self.stream.summary(), self.space, confidence)


def image_batches(
    model: Model,
    benchmark: Benchmark,
    split: Split,
    runtime: RuntimeOptions,
    rows: Sequence[int] | None = None,
) -> Iterator[ImageBatch]:
    """The images of a split (or those ``rows`` of it), in order, preprocessed as the backbone wants."""
    chosen = range(len(benchmark.samples[split])) if rows is None else rows
    order = [[chosen[i] for i in batch] for batch in sequential_batches(len(chosen), runtime.batch_size)]
    if isinstance(benchmark, EncodedBenchmark):
        return benchmark.batches(split, order, model.device)
    files = list(benchmark.paths(split))
    transform = EvalTransform(Preprocess(model.backbone.spec.preprocess))
    return load_batches(files, transform, order, device=model.device, workers=runtime.num_workers)


@contextlib.contextmanager
def evaluation_mode(model: Model) -> Iterator[None]:
    """Put a model into evaluation mode, and back into its former mode at the end."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def score_split(
    model: Model,
    benchmark: Benchmark,
    split: Split,
    consumers: Sequence[ScoreConsumer],
    runtime: RuntimeOptions,
    progress: ProgressFn = no_progress,
) -> None:
    """Score every image of ``split`` for every consumer.

    Each image is encoded once, and scored once per label space; scores are dropped when every consumer
    has received them. The model is left in the mode (training or evaluation) it was in.

    Raises DatasetError if the split has no image.
    """
    benchmark.require(split)
    samples = benchmark.samples[split]
    pairs = [sample.pair for sample in samples]
    with evaluation_mode(model), autocast(model.device, runtime.precision):
        by_space: dict[int, tuple[TextBank, list[ScoreConsumer], torch.Tensor]] = {}
        for consumer in consumers:
            if id(consumer.space) not in by_space:
                truth = torch.from_numpy(consumer.space.indices(pairs))
                by_space[id(consumer.space)] = (model.text_bank(consumer.space), [], truth)
            by_space[id(consumer.space)][1].append(consumer)
        done = 0
        for batch in image_batches(model, benchmark, split, runtime):
            images = model.encode_images_tta(batch.images)
            for bank, group, truth in by_space.values():
                scores = model.corrected_scores(images, bank)
                combined: dict[Calibration, torch.Tensor] = {}
                for consumer in group:
                    if consumer.calibration not in combined:
                        combined = {
                            consumer.calibration: model.combine(scores, bank.space, consumer.calibration)
                        }
                    consumer.update(combined[consumer.calibration], truth[batch.rows])
            done += len(batch.rows)
            progress(done, len(samples))


def measure_split(
    model: Model,
    benchmark: Benchmark,
    split: Split,
    spaces: dict[str, LabelSpace],
    runtime: RuntimeOptions,
    *,
    adjustments: Mapping[str, FeasibilityAdjustment | None] = MappingProxyType({}),
    biases: Mapping[str, float] = MappingProxyType({}),
    keep: ScoreWriter | None = None,
    progress: ProgressFn = no_progress,
) -> dict[str, MeasuredSplit]:
    """The summary of a split's scores in each world, with the model's calibration.

    Args:
        biases: by world, where its probabilities are measured too, with this bias of unseen pairs.
        keep: receives the scores as well; there is one world then.
    """
    scorers = {
        world: WorldScorer(space, model.calibration, adjustments.get(world), biases.get(world), keep)
        for world, space in spaces.items()
    }
    score_split(model, benchmark, split, list(scorers.values()), runtime, progress)
    return {world: scorer.measured() for world, scorer in scorers.items()}


def evaluate_worlds(
    model: Model,
    benchmark: Benchmark,
    split: Split,
    spaces: dict[str, LabelSpace],
    runtime: RuntimeOptions,
    *,
    protocol: SweepProtocol = "exact",
    progress: ProgressFn = no_progress,
) -> dict[str, Metrics]:
    """Metrics by world, with the model's calibration."""
    measured = measure_split(model, benchmark, split, spaces, runtime, progress=progress)
    return {world: sweep(m.summary, m.space, protocol) for world, m in measured.items()}


def check_same_labels(known: LabelSpace, benchmark: Benchmark) -> None:
    """Raise DatasetError unless the benchmark has the states, objects and seen pairs of ``known``."""
    here = benchmark.vocabulary
    for kind, ours, theirs in (
        ("state", known.states, here.states),
        ("object", known.objects, here.objects),
        ("training pair", sorted(known.seen_pairs), sorted(here.seen_pairs)),
    ):
        mismatched = sorted({*map(label_name, ours)} ^ {*map(label_name, theirs)})
        if mismatched:
            side = "only the model" if mismatched[0] in set(map(label_name, ours)) else "only the dataset"
            raise DatasetError(
                f"The label space of {benchmark.root} differs from the one the model was trained on: "
                f"{side} has the {kind} '{mismatched[0]}' ({len(mismatched)} differ).",
                hint="Evaluate on the dataset that the model was trained on, or train a model on this one.",
            )


def label_name(name: str | Pair) -> str:
    return name if isinstance(name, str) else " ".join(name)
