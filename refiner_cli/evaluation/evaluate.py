"""One evaluation from start to end: of a model on a dataset, or of any method's score file."""

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
from refiner_cli.evaluation.metrics.bias_sweep import Protocol
from refiner_cli.evaluation.metrics.bootstrap import BOOTSTRAP_SAMPLES, MeasuredSplit
from refiner_cli.evaluation.metrics.streaming import ScoreStream
from refiner_cli.evaluation.result import TOP, Result, summarise_world
from refiner_cli.evaluation.score_files import open_scores
from refiner_cli.evaluation.scoring import Progress, check_same_labels, measure_split, silent

GIVEN_WORLD = "given"  # the one world of a score file


@dataclass(frozen=True)
class EvalOptions:
    """What is reported and how; nothing here changes a score."""

    protocol: Protocol = "exact"
    ks: Sequence[int] = TOP
    bootstrap_samples: int = BOOTSTRAP_SAMPLES
    seed: int = 0


def evaluate_model(
    model: Model,
    benchmark: Benchmark,
    split: Split,
    worlds: Sequence[World],
    setting: RuntimeOptions,
    asked: EvalOptions,
    *,
    feasibility: FeasibilityMode = "none",
    vectors: Path | None = None,
    progress: Progress = silent,
) -> Result:
    """Evaluate a model on a split; a feasibility prior is fitted on validation first.

    Args:
        feasibility: the prior of the open world; the closed world has none.
        vectors: a table of word vectors; None: the model's own text tower says what is similar.

    Raises:
        DatasetError: the dataset has other labels than the model, or an image cannot be read.
    """
    check_same_labels(model.space, benchmark)
    fitted, choice = None, None
    if feasibility != "none" and "open" in worlds:
        similarity = similarity_of(model, benchmark, vectors)
        fitted, choice = fit_feasibility(
            model, benchmark, feasibility, similarity, setting, protocol=asked.protocol, progress=progress
        )
    spaces = {str(world): benchmark.label_space(split, world) for world in worlds}
    found = measure_split(
        model, benchmark, split, spaces, setting, priors={"open": fitted}, progress=progress
    )
    results = {}
    for world, measured in found.items():
        chosen = choice if world == "open" else None
        bias = chosen.bias if chosen else model.calibration.bias
        results[world] = summarise_world(
            measured, asked.protocol, bias=bias, feasibility=chosen, ks=asked.ks,
            draws=asked.bootstrap_samples, seed=asked.seed,
        )  # fmt: skip
    images = [sample.path for sample in benchmark.samples[split]]
    return Result(
        benchmark.name,
        split,
        asked.protocol,
        results,
        images,
        asked.bootstrap_samples,
        asked.seed,
        model.calibration,
    )


def similarity_of(model: Model, benchmark: Benchmark, vectors: Path | None) -> Similarity:
    """What the feasibility of pairs is computed from."""
    if vectors is None:
        return text_tower_similarity(model.backbone, benchmark.vocabulary)
    return word_vector_similarity(vectors, benchmark.vocabulary)


def evaluate_score_file(file: Path, asked: EvalOptions, progress: Progress = silent) -> Result:
    """Evaluate a score file, reading a few rows at a time. Raises ScoresError with the exact place."""
    source = open_scores(file)
    stream = ScoreStream(source.space, source.allowed)
    for rows, truth in source.blocks():
        stream.update(rows, truth)
        progress(len(stream), len(source))
    world = summarise_world(
        MeasuredSplit(stream.summary(), source.space), asked.protocol, ks=asked.ks,
        draws=asked.bootstrap_samples, seed=asked.seed,
    )  # fmt: skip
    images = [str(row) for row in range(len(source))]
    return Result(
        file.name,
        GIVEN_WORLD,
        asked.protocol,
        {GIVEN_WORLD: world},
        images,
        asked.bootstrap_samples,
        asked.seed,
    )
