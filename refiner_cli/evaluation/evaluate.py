"""A complete evaluation: of a model on a dataset, or of any method's score file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refiner_cli.core.models.base import Model
from refiner_cli.core.runtime.device import RuntimeOptions
from refiner_cli.data.benchmark import Benchmark, Split, World
from refiner_cli.evaluation.feasibility.feasibility import FeasibilityMode, Similarity, text_tower_similarity
from refiner_cli.evaluation.feasibility.fit import fit_feasibility
from refiner_cli.evaluation.feasibility.word_vectors import word_vector_similarity
from refiner_cli.evaluation.metrics.bootstrap import BOOTSTRAP_SAMPLES, MeasuredSplit
from refiner_cli.evaluation.metrics.seen_unseen import SweepProtocol
from refiner_cli.evaluation.metrics.streaming import ScoreStream
from refiner_cli.evaluation.result import DEFAULT_TOP_K, Result, summarise_world
from refiner_cli.evaluation.score_files import open_scores
from refiner_cli.evaluation.score_writer import ScoreWriter
from refiner_cli.evaluation.scoring import ProgressFn, check_same_labels, measure_split, no_progress

SCORES_WORLD = "given"  # the one world of a score file


@dataclass(frozen=True)
class EvalOptions:
    """What is reported and how; nothing here changes a score."""

    protocol: SweepProtocol = "exact"
    ks: Sequence[int] = DEFAULT_TOP_K
    bootstrap_samples: int = BOOTSTRAP_SAMPLES
    seed: int = 0


def evaluate_model(
    model: Model,
    benchmark: Benchmark,
    split: Split,
    worlds: Sequence[World],
    runtime: RuntimeOptions,
    options: EvalOptions,
    *,
    feasibility: FeasibilityMode = "none",
    vectors: Path | None = None,
    keep: ScoreWriter | None = None,
    progress: ProgressFn = no_progress,
) -> Result:
    """Evaluate a model on a split; a feasibility adjustment is fitted on validation first.

    Args:
        feasibility: how implausible pairs are treated in the open world.
        vectors: a file of word vectors for the similarity of names; None: the model's own text tower.
        keep: receives the scores of the one world.

    Raises:
        DatasetError: the dataset has other labels than the model, an image cannot be read, or the validation
            split does not allow to fit the feasibility.
    """
    check_same_labels(model.space, benchmark)
    adjustment, fit = None, None
    if feasibility != "none" and "open" in worlds:
        similarity = similarity_of(model, benchmark, vectors)
        adjustment, fit = fit_feasibility(
            model, benchmark, feasibility, similarity, runtime, protocol=options.protocol, progress=progress
        )
    spaces = {str(world): benchmark.label_space(split, world) for world in worlds}
    fits = {world: fit if world == "open" else None for world in spaces}
    biases = {
        world: found.bias if found else model.calibration.bias_of(is_open=spaces[world].is_open)
        for world, found in fits.items()
    }
    measured = measure_split(
        model,
        benchmark,
        split,
        spaces,
        runtime,
        adjustments={"open": adjustment},
        biases=biases,
        keep=keep,
        progress=progress,
    )
    results = {}
    for world, split_scores in measured.items():
        results[world] = summarise_world(
            split_scores, options.protocol, bias=biases[world], feasibility=fits[world], ks=options.ks,
            bootstrap_samples=options.bootstrap_samples, seed=options.seed,
        )  # fmt: skip
    images = [sample.path for sample in benchmark.samples[split]]
    return Result(
        benchmark.name,
        split,
        options.protocol,
        results,
        images,
        options.bootstrap_samples,
        options.seed,
        model.calibration,
    )


def similarity_of(model: Model, benchmark: Benchmark, vectors: Path | None) -> Similarity:
    """The similarity of names that feasibility is computed from."""
    if vectors is None:
        return text_tower_similarity(model.backbone, benchmark.vocabulary)
    return word_vector_similarity(vectors, benchmark.vocabulary)


def evaluate_score_file(
    file: Path, options: EvalOptions, progress: ProgressFn = no_progress, *, world_name: str = SCORES_WORLD
) -> Result:
    """Evaluate a score file, reading a few rows at a time. Raises ScoresError with the exact place.

    Args:
        world_name: what the one world of the result is called.
    """
    source = open_scores(file)
    stream = ScoreStream(source.space, source.allowed)
    for rows, truth in source.blocks():
        stream.update(rows, truth)
        progress(len(stream), len(source))
    measured = MeasuredSplit(stream.summary(), source.space, allowed=source.allowed)
    world = summarise_world(
        measured, options.protocol, ks=options.ks,
        bootstrap_samples=options.bootstrap_samples, seed=options.seed,
    )  # fmt: skip
    images = [str(row) for row in range(len(source))]
    return Result(
        file.name,
        SCORES_WORLD,
        options.protocol,
        {world_name: world},
        images,
        options.bootstrap_samples,
        options.seed,
    )
