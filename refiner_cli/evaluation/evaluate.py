"""One evaluation from start to end: of a model on a dataset, or of any method's score file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refiner_cli.core.models.base import Model
from refiner_cli.data.benchmark import Benchmark, Split, World
from refiner_cli.evaluation.feasibility.feasibility import Kind, Similarity, by_text_tower
from refiner_cli.evaluation.feasibility.fit import choose_feasibility
from refiner_cli.evaluation.feasibility.word_vectors import by_vectors
from refiner_cli.evaluation.metrics.bias_sweep import Protocol
from refiner_cli.evaluation.metrics.bootstrap import DRAWS, Measured
from refiner_cli.evaluation.metrics.streaming import ScoreStream
from refiner_cli.evaluation.result import TOP, Result, summarise
from refiner_cli.evaluation.score_files import open_scores
from refiner_cli.evaluation.scoring import Progress, Setting, check_same_labels, measure, silent

GIVEN = "given"  # the one world of a score file


@dataclass(frozen=True)
class Asked:
    """What is reported and how; nothing here changes a score."""

    protocol: Protocol = "exact"
    ks: Sequence[int] = TOP
    draws: int = DRAWS
    seed: int = 0


def assess_model(
    model: Model,
    benchmark: Benchmark,
    split: Split,
    worlds: Sequence[World],
    setting: Setting,
    asked: Asked,
    *,
    feasibility: Kind = "none",
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
        fitted, choice = choose_feasibility(
            model, benchmark, feasibility, similarity, setting, protocol=asked.protocol, progress=progress
        )
    spaces = {str(world): benchmark.label_space(split, world) for world in worlds}
    found = measure(model, benchmark, split, spaces, setting, priors={"open": fitted}, progress=progress)
    results = {}
    for world, measured in found.items():
        chosen = choice if world == "open" else None
        bias = chosen.bias if chosen else model.calibration.bias
        results[world] = summarise(
            measured, asked.protocol, bias=bias, feasibility=chosen, ks=asked.ks, draws=asked.draws,
            seed=asked.seed,
        )  # fmt: skip
    images = [sample.path for sample in benchmark.samples[split]]
    return Result(
        benchmark.name, split, asked.protocol, results, images, asked.draws, asked.seed, model.calibration
    )


def similarity_of(model: Model, benchmark: Benchmark, vectors: Path | None) -> Similarity:
    """What the feasibility of pairs is computed from."""
    if vectors is None:
        return by_text_tower(model.backbone, benchmark.vocabulary)
    return by_vectors(vectors, benchmark.vocabulary)


def assess_scores(file: Path, asked: Asked, progress: Progress = silent) -> Result:
    """Evaluate a score file, reading a few rows at a time. Raises ScoresError with the exact place."""
    source = open_scores(file)
    stream = ScoreStream(source.space, source.allowed)
    for rows, truth in source.blocks():
        stream.update(rows, truth)
        progress(len(stream), len(source))
    world = summarise(
        Measured(stream.digest(), source.space), asked.protocol, ks=asked.ks, draws=asked.draws,
        seed=asked.seed,
    )  # fmt: skip
    images = [str(row) for row in range(len(source))]
    return Result(file.name, GIVEN, asked.protocol, {GIVEN: world}, images, asked.draws, asked.seed)
